"""What whoever runs the worker sees: its log, its metrics, its ports, and how it stops."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray.util.metrics import Metric

from demo.application import session_processes
from serve_app.telemetry import metrics
from tests.serve.running import JOB_S, RunningApp, running_app
from tests.waiting import until

NOT_FOUND_S = 60.0  # metrics are brought together every few seconds
DECLARED = {one.info["name"] for one in vars(metrics).values() if isinstance(one, Metric)}
# What an application on a CPU and without failures has nothing to say of.
NOT_EVERYWHERE = {
    "lipsync_vram_peak_mib", "lipsync_vram_held_mib",
    "lipsync_segments_retried_total", "lipsync_calls_retried_total",
}  # fmt: skip


def metrics_address(app: RunningApp) -> str:
    """Return where the start line says that the metrics are."""
    [address] = [
        found[1] for line in app.log if (found := re.search(r"metrics (http\S+/metrics)", line))
    ]
    return address


def wait_for_line(app: RunningApp, words: str) -> str:
    """Wait until a line with `words` is printed; Ray brings lines with a delay."""
    found = until(
        lambda: [line for line in app.log if words in line],
        lambda: "\n".join([*app.log[-50:], f"The log has no line with {words!r}"]),
        NOT_FOUND_S,
    )
    assert len(found) == 1, found
    return found[0]


def test_jobs_are_lines_and_mistakes_are_no_traces(
    app: RunningApp, clip: Callable[..., Path], speech: Callable[..., Path], tmp_path: Path
) -> None:
    """Mend 2.7."""
    not_a_video = tmp_path / "notes.mp4"
    not_a_video.write_text("these are my notes\n" * 200)
    good, sound = clip(frames=30).as_uri(), speech(1.0).as_uri()
    before = len(app.log)
    for job_id, video, audio in (
        ("log-video", not_a_video.as_uri(), sound),
        ("log-audio", good, not_a_video.as_uri()),
        ("log-place", "http://10.0.0.1/x.mp4", sound),
        ("log-file", "file:///etc/passwd", sound),
    ):
        answer = app.generate(musetalk_job_id=job_id, video_url=video, audio_url=audio)
        assert answer.status_code == 422
    assert app.client.post("/generate", content=b"{nonsense").status_code == 422
    assert (
        app.generate(musetalk_job_id="log-ok", video_url=good, audio_url=sound).status_code == 200
    )
    line = wait_for_line(app, "job log-ok succeeded")
    assert re.search(r"job log-ok succeeded: 25 frames in \d+\.\d s, engine warp", line)
    wait_for_line(app, "job log-video failed (invalid_video): ")
    assert not [line for line in app.log[before:] if "Traceback" in line]
    [ready] = [line for line in app.log if "ready at " in line]
    assert f"studio at http://127.0.0.1:{app.port}/, engine warp, landmarks mesh" in ready


def test_metrics_are_at_one_address_on_loopback(
    app: RunningApp, clip: Callable[..., Path], speech: Callable[..., Path]
) -> None:
    """Mend 2.12: `/metrics` was 404, and the port of the metrics random."""
    media = {"video_url": clip(frames=30).as_uri(), "audio_url": speech(1.0).as_uri()}
    assert app.generate(musetalk_job_id="measured", **media).status_code == 200
    sound = app.client.put("/v1/uploads/a.wav", content=speech(1.0).read_bytes()).json()
    assert app.client.put("/v1/uploads/b.wav", content=b"no media").status_code == 422
    address = metrics_address(app)
    wanted = {f"ray_{name}" for name in DECLARED - NOT_EVERYWHERE}
    until(
        lambda: wanted <= _families(address),
        lambda: f"{address} has not given {wanted - _families(address)}",
        NOT_FOUND_S,
        pause_s=0.5,
    )
    # The dashboard is checked against the declared names, so these have to be Ray's own.
    ours = {name for name in _families(address) if name.startswith("ray_lipsync_")}
    assert ours <= {f"ray_{name}" for name in DECLARED}

    def engines() -> list[str]:
        return [line for line in _metrics(address).splitlines() if "ray_lipsync_engines{" in line]

    until(
        lambda: any('pool="cpu"' in line and line.endswith(" 1.0") for line in engines()),
        lambda: f"{engines()} do not name the one that runs",
        NOT_FOUND_S,
        pause_s=0.5,
    )
    app.client.delete(f"/v1/uploads/{sound['id']}").raise_for_status()
    assert address.startswith("http://127.0.0.1:")


def _families(address: str) -> set[str]:
    """Return the names of the metrics, those of histograms without their endings."""
    return set(re.findall(r"^# TYPE (\S+) ", _metrics(address), re.MULTILINE))


def _metrics(address: str) -> str:
    return httpx.get(address, trust_env=False, timeout=30).raise_for_status().text


def test_nothing_but_loopback_is_listened_on(app: RunningApp) -> None:
    """Mend 4.10. Serve's own server for calls between deployments takes pickles from anybody."""
    listening = []
    for process in session_processes(app.ray_folder):
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                address: Any = one.laddr
                listening.append((address.ip.removeprefix("::ffff:"), address.port, process.name()))
    assert len(listening) > 10
    assert [one for one in listening if one[0] not in ("127.0.0.1", "::1")] == []


@pytest.mark.slow
def test_a_stop_lets_the_running_job_end_and_its_caller_be_answered(
    tmp_path: Path, clip: Callable[..., Path], speech: Callable[..., Path]
) -> None:
    """Mends 2.8 and 2.7: SIGTERM in the middle of a job gave a C++ stack; the log ignored JSON."""
    with running_app(tmp_path / "app", is_json=True) as app:
        media = {"video_url": clip(frames=100).as_uri(), "audio_url": speech(8.0).as_uri()}
        answers: list[httpx.Response] = []
        body = {"musetalk_job_id": "drained", **media}
        caller = threading.Thread(target=lambda: answers.append(app.generate(**body)))
        caller.start()
        app.wait_drawn("drained")
        app.process.send_signal(signal.SIGTERM)
        assert app.process.wait(JOB_S) == 0
        caller.join(JOB_S)
        assert [answer.status_code for answer in answers] == [200], answers
        lines = [json.loads(line) for line in app.log]
        messages = [line["message"] for line in lines]
        assert any(message.startswith("job drained succeeded: 200 frames") for message in messages)
        assert messages[-1] == "stopped"
        assert not [text for text in messages if "Traceback" in text or "***" in text]
        # Ray's reaper looks for what it has to end a second after that.
        _, left = psutil.wait_procs(session_processes(app.ray_folder), timeout=NOT_FOUND_S)
        assert left == []
