"""How the studio follows a job, by its own module, over streams that begin with the past."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Reply, Seen
from test_client_transfers import Serve, event, job, stream

MODULE = Path(__file__).resolve().parents[2] / "serve_app/studio/assets/js/api.js"
SCRIPT = """
const [, , server, shown] = process.argv;
globalThis.document = { baseURI: server + "/" };
const { Api, follow } = await import("./api.mjs");

const keys = { key: "the-key", ask: async () => false };
const seen = [];
for await (const job of follow(new Api(keys), JSON.parse(shown), new AbortController().signal)) {
  seen.push([job.status, job.progress.fraction]);
}
console.log(JSON.stringify(seen));
"""

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@pytest.fixture
def follow(tmp_path: Path) -> Any:
    """Return `follow(url, shown) -> list` of the states that the studio draws after `shown`."""

    def run(url: str, shown: dict[str, Any]) -> list[list[Any]]:
        shutil.copy(MODULE, tmp_path / "api.mjs")
        (tmp_path / "follow.mjs").write_text(SCRIPT)
        done = subprocess.run(
            ["node", "follow.mjs", url, json.dumps(shown)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        seen: list[list[Any]] = json.loads(done.stdout)
        return seen

    return run


def at(second: float, status: str = "running", fraction: float = 0.0) -> dict[str, Any]:
    """Return a job that was stored in this second of a minute."""
    return job(status, fraction, updated_at=f"2026-01-01T00:00:{second:09.6f}Z")


def test_a_job_that_was_retried_does_not_show_its_first_attempt(serve: Serve, follow: Any) -> None:
    """A new reader gets all changes of a job first, those of earlier attempts too."""
    events = [
        event("progress", at(1, fraction=0.03), 1),
        event("progress", at(2, fraction=0.8), 2),
        event("progress", at(5, "queued")),
        event("progress", at(6, fraction=0.03), 3),
        event("end", at(9, "succeeded", 1.0)),
    ]
    server = serve(lambda seen: stream(*events))
    seen = follow(server.url, at(5, "queued"))
    assert seen == [["queued", 0], ["running", 0.03], ["succeeded", 1]]


def test_phases_that_were_stored_together_do_not_let_a_job_go_back(
    serve: Serve, follow: Any
) -> None:
    events = [
        event("progress", at(5, fraction=0.03), 1),
        event("progress", at(5, fraction=0.05), 2),
        event("progress", at(5, fraction=0.4), 3),
        event("end", at(6, "succeeded", 1.0)),
    ]
    server = serve(lambda seen: stream(*events))
    seen = follow(server.url, at(5, fraction=0.4))
    assert [fraction for _, fraction in seen] == [0.4, 1]


def test_a_connection_that_breaks_does_not_let_a_job_go_back(serve: Serve, follow: Any) -> None:
    """Progress between two changes has no id, so the next connection begins before it."""
    streams = [
        stream(
            event("progress", at(3, fraction=0.05), 3),
            event("progress", at(4.5, fraction=0.6)),
            is_cut=True,
        ),
        stream(
            event("progress", at(4.25, fraction=0.5), 4),
            event("progress", at(4.5, fraction=0.6)),
            event("progress", at(5, fraction=0.9), 5),
            event("end", at(6, "failed", 0.9)),
        ),
    ]

    def script(seen: Seen) -> Reply:
        assert seen.path == "/v1/avatar/jobs/a/events"
        assert seen.headers["x-internal-api-key"] == "the-key"
        return streams.pop(0)

    server = serve(script)
    fractions = [fraction for _, fraction in follow(server.url, at(2))]
    assert fractions == [0.05, 0.6, 0.6, 0.9, 0.9]
    assert [seen.headers.get("last-event-id") for seen in server.seen] == [None, "3"]
