"""The JavaScript module of docs/api.md over connections that break; whole jobs are in
tests/serve/test_examples.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from scripted_server import Reply, Seen, refusal, reply
from test_client_transfers import CONTENT, Serve, Tus, event, job, stream

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
SCRIPT = """
import { readFile } from "node:fs/promises";
import { Lipsync } from "./lipsync.mjs";

const server = new Lipsync(process.argv[2] + "/", "the-key");
const file = new File([await readFile("face.mp4")], "ein Gesicht ä.mp4");
const sent = [], seen = [];
const fields = { resolution: "64x64" };
const job = await server.submit(file, "https://h/a.wav", fields, (n) => sent.push(n));
const video = await server.result(job.id, (job) => seen.push(job.progress.fraction));
const saying = (error) => [error.code, error.hint, error.message];
const refused = await server.result("none").catch(saying);
console.log(JSON.stringify({ sent, seen, size: video.size, refused }));
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_module_goes_on_where_connections_break_off(serve: Serve, tmp_path: Path) -> None:
    [module] = re.findall(r"```js\n(// lipsync\.mjs\n.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "lipsync.mjs").write_text(module)
    (tmp_path / "try.mjs").write_text(SCRIPT)
    (tmp_path / "face.mp4").write_bytes(CONTENT * 12)
    tus = Tus(trouble=[Reply(cut_after=-1), Reply(409)])
    streams = [
        stream(event("progress", job(fraction=0.1), 3), is_cut=True),
        refusal(503, "busy", retryable=True),
        stream(event("progress", job(fraction=0.2), 4)),
    ]

    def script(seen: Seen) -> Reply:
        if seen.path.startswith("/v1/uploads"):
            return tus(seen)
        if "/none/" in seen.path:
            return refusal(404, "job_not_found")
        if "/events" in seen.path:
            ended = job("succeeded", 1.0, output_url=f"{server.url}/files/a.mp4?signature=s")
            return streams.pop(0) if streams else stream(event("end", ended))
        if seen.path.startswith("/files"):
            assert "x-internal-api-key" not in seen.headers
            return Reply(200, b"a video")
        assert seen.headers["x-internal-api-key"] == "the-key"
        return reply(job("queued"), 202)

    server = serve(script)
    done = subprocess.run(
        ["node", "try.mjs", server.url], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert tus.kept == CONTENT * 12 and tus.names == ["ein Gesicht ä.mp4"]
    assert facts["sent"] == [0, 1 << 20, len(CONTENT * 12)]
    assert (facts["seen"], facts["size"]) == ([0.1, 0.2, 1], len(b"a video"))
    assert facts["refused"] == ["job_not_found", "Do something else.", "It cannot be done."]
    asked = [seen.headers.get("last-event-id") for seen in server.seen if "a/events" in seen.path]
    assert asked == [None, "3", "3", "4"]
