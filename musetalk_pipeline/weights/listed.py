"""Weight files that a list names: those inside an image, as scripts/weights_plan.py wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.weights.manifest import WeightFile


def read_list(path: Path) -> tuple[WeightFile, ...]:
    """Return the files of the list.

    Raises:
        ModelLoadFailed: the file is not such a list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["files"]
        return tuple(
            WeightFile(entry["path"], entry["source"], entry["bytes"], entry["sha256"])
            for entry in entries
        )
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelLoadFailed(
            f"{path} is not a list of weight files ({exc!r}).", file=str(path)
        ) from exc
