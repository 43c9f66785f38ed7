#!/usr/bin/env python3
"""Stands in for Salad's HTTP job queue worker: it does one job, as the real one does, and ends.

1. It waits until `/hc` answers 200; at Salad the readiness probe of the container group does that.
2. It posts the job to http://localhost:PORT/PATH, with the header `Salad-Job-Id`.
3. 408, 429 and 5xx are a failed job; every other answer is a result.

The job comes from the variable STAND_IN_JOB, `{"port", "path", "id", "input"}`, instead of Salad's
service. The exit code is 7 after a result, so that it can be told from that of the application, 1
after a failure, and 0 after SIGTERM, like the real one's.
"""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request

WAIT_S, POLL_S, JOB_S = 180.0, 0.5, 180.0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    job = json.loads(os.environ["STAND_IN_JOB"])
    base = f"http://localhost:{job['port']}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + WAIT_S
    while not is_ready(opener, base):
        if time.monotonic() > until:
            return 1
        time.sleep(POLL_S)
    headers = {"Content-Type": "application/json", "Salad-Job-Id": job["id"]}
    body = json.dumps(job["input"]).encode()
    request = urllib.request.Request(base + job["path"], body, headers, method="POST")
    try:
        with opener.open(request, timeout=JOB_S) as answer:
            print("queue-worker:", answer.status, answer.read().decode(), flush=True)
            return 7
    except urllib.error.HTTPError as refused:
        print("queue-worker:", refused.code, refused.read().decode(), flush=True)
        return 1 if refused.code in (408, 429) or refused.code >= 500 else 7


def is_ready(opener: urllib.request.OpenerDirector, base: str) -> bool:
    try:
        with opener.open(base + "/hc", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
