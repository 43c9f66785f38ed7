"""The tags that no vendor stores: the status and the hashes that Ray notes for each node.

What a machine is for is in its name (cluster/rental/identity.py). The rest is in a file here, one
for the operator and one on the head. If it is lost, Ray sets its nodes up again, and no more.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path("~/.lipsync/clusters")

Tags = dict[str, str]


class TagFile:
    """The tags of one cluster's nodes. May be used from several threads and processes."""

    def __init__(self, cluster_name: str, folder: Path = FOLDER) -> None:
        self._path = folder.expanduser() / f"{cluster_name}.tags.json"
        self._lock = threading.Lock()

    def of(self, node_id: str) -> Tags:
        """Return the tags of a node; none if nothing is known."""
        return self._read().get(node_id, {})

    def merge(self, node_id: str, tags: Tags) -> None:
        """Add tags to those of a node."""
        with self._changing() as all_tags:
            all_tags[node_id] = all_tags.get(node_id, {}) | tags

    def node_ids(self) -> set[str]:
        """Return the nodes that have tags."""
        return set(self._read())

    def forget(self, node_ids: Collection[str]) -> None:
        """Forget these nodes."""
        if self.node_ids() & set(node_ids):
            with self._changing() as all_tags:
                for gone in node_ids:
                    all_tags.pop(gone, None)

    def remove(self) -> None:
        """Forget the cluster."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".lock").unlink(missing_ok=True)

    def _read(self) -> dict[str, Tags]:
        try:
            found: dict[str, Tags] = json.loads(self._path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Tags]]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock, self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tags = self._read()
            yield tags
            fresh = self._path.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(tags))
            fresh.replace(self._path)
