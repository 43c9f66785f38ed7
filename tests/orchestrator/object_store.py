"""An S3 server for tests: moto's (`pip install "moto[server,s3]"`), on a free port of loopback."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx

from orchestrator.outputs import BucketSettings
from orchestrator.outputs.signature import sign_headers

B2 = BucketSettings("https://s3.us-west-004.backblazeb2.com", "videos", "key", "secret")
WHY_NONE = 'moto\'s server is not installed (pip install "moto[server,s3]")'
LIMIT_S = 60


def moto_server() -> str | None:
    """Return the command that starts moto's server, if it is installed."""
    beside = Path(sys.executable).with_name("moto_server")
    named = os.environ.get("MOTO_SERVER") or (str(beside) if beside.exists() else None)
    return named or shutil.which("moto_server")


@contextmanager
def object_store(command: str) -> Iterator[str]:
    """Start a server with the bucket `videos`, and yield its address."""
    process = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    address = next(m.group() for m in (re.search(r"http://[\d.]+:\d+", x) for x in lines) if m)
    settings = replace(B2, endpoint=address)
    signed = sign_headers("PUT", f"{address}/videos", settings.credentials, datetime.now(UTC))
    assert httpx.put(f"{address}/videos", headers=signed).status_code == 200
    try:
        yield address
    finally:
        process.terminate()
        process.wait(LIMIT_S)
        process.stderr.close()


def variables_of(endpoint: str, **more: str) -> dict[str, str]:
    """Return the orchestrator's settings for that server's bucket."""
    return {
        "ORCHESTRATOR_OUTPUT_ENDPOINT": endpoint,
        "ORCHESTRATOR_OUTPUT_BUCKET": B2.bucket,
        "ORCHESTRATOR_OUTPUT_KEY_ID": B2.key_id,
        "ORCHESTRATOR_OUTPUT_SECRET": B2.secret,
        **{f"ORCHESTRATOR_OUTPUT_{name.upper()}": value for name, value in more.items()},
    }
