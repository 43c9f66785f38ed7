"""The gate at the real application: its start, a crowd of unfinished requests, slow readers."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from demo.application import session_processes
from tests.serve.running import RunningApp
from tests.serve.test_generate import uris

MIB = 1 << 20
UNFINISHED = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 37


def test_the_start_is_503_from_the_first_second(app: RunningApp) -> None:
    """Mend 1.13: neither Serve's own 404 nor a request that hangs (then the start has failed)."""
    before = [(path, answer) for path, answer in app.early if answer.status_code == 503]
    assert {path for path, _ in before} >= {"/generate", "/v1/avatar/jobs", "/hc", "/health"}
    for path, answer in before:
        assert int(answer.headers["Retry-After"]) > 0
        body = answer.json()
        if path in ("/hc", "/health"):
            assert body["status"] == "starting"
        else:
            assert body["status"] == "failed" and body["code"] == "starting"
            assert body["retryable"] is True
    others = {(path, answer.status_code) for path, answer in app.early if answer.status_code != 503}
    # From the moment of readiness on: an empty body, an empty list, no such file.
    assert others <= {
        ("/generate", 422), ("/v1/avatar/jobs", 200), ("/files/x.mp4", 404),
        ("/health", 200), ("/hc", 200),
    }  # fmt: skip


def test_a_thousand_unfinished_posts_do_not_matter(app: RunningApp, clip, speech) -> None:
    """Mend 4.1: /hc stays 200 and a job is done while they are open; 100 KB in all, no key."""
    replicas = [process.pid for process in app.replicas("Ingress")]
    with crowd(app.port, 1000):
        answers = [app.client.get("/hc").status_code for _ in range(20)]
        body = uris(clip(), speech(0.6))
        assert app.generate(musetalk_job_id="crowded", **body).status_code == 200
        answers += [app.client.get("/hc").status_code for _ in range(20)]
    assert set(answers) == {200}
    assert [process.pid for process in app.replicas("Ingress")] == replicas


def test_slow_readers_leave_memory_flat(app: RunningApp) -> None:
    """Mend 4.2: six clients that never read a file of 200 MB; a seventh reads all of it."""
    file = app.folder / "results" / "large.mp4"
    try:
        with file.open("wb") as writer:
            writer.truncate(200 * MIB)
        assert len(app.client.get("/files/large.mp4", headers={"Range": "bytes=0-9"}).content) == 10
        before = memory(app)
        get = b"GET /files/large.mp4 HTTP/1.1\r\nHost: x\r\n\r\n"
        with crowd(app.port, 6, get) as readers:
            for reader in readers:
                assert reader.recv(16, socket.MSG_PEEK).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            assert len(app.client.get("/files/large.mp4").content) == 200 * MIB
            print(f"200 MiB in {time.monotonic() - began:.1f} s")
            after = memory(app)
    finally:
        file.unlink()
    print({name: f"{before[name] / MIB:.0f} -> {after[name] / MIB:.0f} MiB" for name in before})
    for name in before:
        assert after[name] - before[name] < 100 * MIB, name


def test_clients_that_go_away_are_no_tracebacks(app: RunningApp, clip, speech) -> None:
    """Mend 4.10: in the middle of their body, while they wait, and while they follow a job."""
    before = {path: path.stat().st_size for path in logs(app)}
    with crowd(app.port, 20):
        pass
    body = {"musetalk_job_id": "left", **uris(clip(frames=100), speech(60.0))}
    content = json.dumps(body).encode()
    start = f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:{app.port}\r\n"
    start += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with crowd(app.port, 1, start.encode() + content):
        app.wait_drawn("left")
    app.wait_for("left", "cancelled")
    body["musetalk_job_id"] = "followed"
    app.client.post("/v1/avatar/jobs", json=body)
    with app.client.stream("GET", "/v1/avatar/jobs/followed/events") as events:
        next(events.iter_lines())
    app.client.delete("/v1/avatar/jobs/followed")
    app.wait_for("followed", "cancelled")
    new = [
        line
        for path in logs(app)
        for line in path.read_bytes()[before.get(path, 0) :].decode().splitlines()
        # A stage may have begun a call of the job when its files were removed, and say so.
        if not any(f":{stage}" in line for stage in STAGES)
    ]
    assert [line for line in new if "Traceback" in line] == []
    assert sum(text.count("before its request was complete") for text in new) >= 20


@contextlib.contextmanager
def crowd(port: int, n: int, start: bytes = UNFINISHED) -> Iterator[list[socket.socket]]:
    """Open `n` connections that send `start` and then nothing, and read nothing."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(n):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect(("127.0.0.1", port))
            connection.sendall(start)
            connections.append(connection)
        yield connections


def memory(app: RunningApp) -> dict[str, int]:
    """Return the resident bytes of the ingress and of Serve's proxy."""
    [ingress] = app.replicas("Ingress")
    proxies = [process for process in session_processes(app.ray_folder) if is_proxy(process)]
    assert len(proxies) == 1
    return {"ingress": ingress.memory_info().rss, "proxy": proxies[0].memory_info().rss}


def is_proxy(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part.startswith("ray::ProxyActor") for part in process.cmdline())
    return False


STAGES = ("Preprocessor", "Finisher", "Generator")


def logs(app: RunningApp) -> list[Path]:
    """Return the log of the application, and the files that the proxy and the ingress write to."""
    folder = Path(app.ray_folder)
    own = [*folder.glob("**/logs/serve/proxy*"), *folder.glob("**/logs/serve/replica*Ingress*")]
    return [app.folder / "log", *(path for path in own if path.is_file())]
