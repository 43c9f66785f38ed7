"""A server for what a build fetches: weights, to those with a token, and a program."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from image_check import Wrong
from image_check.contents import PLANTED
from image_check.store import Layer

TOKEN = PLANTED.decode()  # so that the search for secrets finds it wherever the build leaves it
LAYER_BYTES = 4 * 10**6
OVERHEAD_BYTES = 10**5  # what an archive adds: headers, and folders
WEIGHTS = {  # path in models/, and bytes: they need two layers of LAYER_BYTES
    "large/a.safetensors": 3_000_000,
    "large/b.safetensors": 2_000_000,
    "large/c.safetensors": 1_500_000,
}
OPEN_FILE = "large/c.safetensors"  # from another server, which must not get the token
QUEUE_WORKER = Path(__file__).with_name("queue_worker.py")


@dataclass(frozen=True, slots=True)
class Hub:
    """What it serves, by path, and who asked with which header."""

    url: str
    files: dict[str, bytes]
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def address(self, path: str) -> str:
        """Return the URL of a file that needs no token."""
        return f"{self.url}/open/{path}"


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve until the end of the block."""
    made = random.Random(7)
    weights = {path: made.randbytes(size) for path, size in WEIGHTS.items()}
    files = {f"/lab/models/resolve/main/{path}": content for path, content in weights.items()}
    files |= {f"/open/{OPEN_FILE}": weights[OPEN_FILE], "/open/worker.tar.gz": queue_worker()}
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Authorization")
            asked.append((self.path, token))
            content = files.get(self.path)
            if not self.path.startswith("/open/") and token != f"Bearer {TOKEN}":
                self.send_error(401)
            elif content is None:
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", files, asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_list(hub: Hub, path: Path) -> None:
    """Write the list of the weights, as a build takes it."""
    entries = [
        {
            "path": name,
            "source": hub.address(name) if name == OPEN_FILE else f"lab/models@main//{name}",
            "bytes": size,
            "sha256": hashlib.sha256(hub.files[f"/lab/models/resolve/main/{name}"]).hexdigest(),
        }
        for name, size in WEIGHTS.items()
    ]
    path.write_text(json.dumps({"files": entries}))


def queue_worker() -> bytes:
    """Return the archive that stands in for the release of Salad's queue worker."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        content = QUEUE_WORKER.read_bytes()
        entry = tarfile.TarInfo("salad-http-job-queue-worker")
        entry.size, entry.mode = len(content), 0o755
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def check_requests(hub: Hub) -> None:
    """Raise Wrong unless the hub was asked with the token, and the other server without it."""
    asked = dict(hub.asked)
    wanted = set(hub.files) - {f"/lab/models/resolve/main/{OPEN_FILE}"}
    if set(asked) != wanted:
        raise Wrong(f"the build fetched {sorted(asked)}, and not {sorted(wanted)}")
    for path, token in asked.items():
        if (token is None) != path.startswith("/open/"):
            raise Wrong(f"{path} was fetched {'without' if token is None else 'with'} the token")


def check_layers(layers: Sequence[Layer], root: Path) -> None:
    """Raise Wrong unless the weights are there, in several layers below the limit."""
    for path, size in WEIGHTS.items():
        if (root / "app" / "models" / path).stat().st_size != size:
            raise Wrong(f"{path} is not in the image as it was served")
    held = [layer.bytes for layer in layers if " fetch-layer " in layer.made_by]
    if len([each for each in held if each > OVERHEAD_BYTES]) < 2 or sum(held) < sum(
        WEIGHTS.values()
    ):
        raise Wrong(f"the weights are not spread over layers: {held}")
    if max(held) > LAYER_BYTES + OVERHEAD_BYTES:
        raise Wrong(f"a layer is larger than {LAYER_BYTES} bytes: {held}")
