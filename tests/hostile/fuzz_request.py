"""Fuzz target for requests: bytes in; a checked job or a refusal out, never anything else.

`python tests/hostile/fuzz_request.py --seconds 60` mutates valid and hostile documents and stops at
the first input that breaks a promise, which it prints. `fuzz_one` is what a coverage-guided fuzzer
wants as its target.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from pathlib import Path

from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from musetalk_pipeline.errors import SourceRefused
from musetalk_pipeline.options import JobOptions
from serve_app.contract.requests import MAX_ID_CHARS, MAX_URL_CHARS, JobCreate, JobRequest
from serve_app.net.addresses import parse_location
from serve_app.outputs.store import object_name

GOOD = {
    "musetalk_job_id": "job-123",
    "video_url": "https://media.example/clip.mp4?sig=very-secret",
    "audio_url": "https://media.example/speech.wav?sig=very-secret",
    "aspect_ratio": "9:16",
    "resolution": "720p",
    "params": {"fit": "crop", "crf": 20, "blur": 0.1, "rest_in_silence": True},
    "webhook_url": "https://caller.example/hook",
    "metadata": {"customer": 7},
}
VALUES = [
    None, True, False, 0, -1, 1e308, -1e308, 10**400, 0.1, "", " ", "x" * 300, "x" * 9000, "\0",
    "\ud800", "\u202e", "../../x", "$(id)", "' OR 1=1 --", "<script>", [], {}, [[]], [1, 2],
    {"a": {"b": {}}}, float("nan"), float("inf"), "720p", "0x0", "99999999x99999999", "9:0", "0:0",
    "-1:-1", "1e9:1", "jaw", "crop", "ultrafast", "file:///etc/passwd", "http://169.254.169.254/",
]  # fmt: skip
TOKENS = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"1e999", b"NaN", b"\\ud800", b"\xff",
          b"\x00", b"\xef\xbb\xbf", b'"params":', b"{" * 500, b"[" * 500,
          b'{"a":' * 200]  # fmt: skip


def fuzz_one(data: bytes) -> bool:
    """Read `data` as each kind of request; True if one of them accepts it.

    Raises:
        AssertionError: an accepted request breaks what the rest of the application relies on.
    """
    accepted = False
    for model in (JobRequest, JobCreate):
        try:
            request = model.model_validate_json(data)
        except ValidationError:
            continue
        _check(request)
        accepted = True
    return accepted


def _check(request: JobRequest | JobCreate) -> None:
    # The route refuses a job that names neither an address of a video nor an avatar.
    for url in filter(None, (request.video_url, request.audio_url)):
        assert 1 <= len(url) <= MAX_URL_CHARS
        url.encode("utf-8")
        try:
            parse_location(url)
        except SourceRefused as refused:
            is_signature = "?" in url.partition("very-secret")[0]  # else the fuzzer moved it
            assert not is_signature or "very-secret" not in f"{refused} {refused.details}"
    assert "very-secret" not in repr(request)
    if request.musetalk_job_id is not None:
        assert 1 <= len(request.musetalk_job_id) <= MAX_ID_CHARS
        assert "/" not in object_name(request.musetalk_job_id)
    if isinstance(request, JobRequest):
        options = request.options(JobOptions())
        assert 0 <= options.encode.crf <= 40 and 0.0 <= options.mask.blur <= 0.5
        assert 0 <= options.speech.audio_padding_left <= 10
        assert 0 <= options.face.box_smoothing <= 12
    # What was accepted can be stored and sent on.
    assert type(request).model_validate_json(request.model_dump_json()) == request


def mutate(chance: random.Random) -> bytes:
    """Return a document that is nearly a request: wrong values, wrong shapes, broken bytes."""
    document = json.loads(json.dumps(GOOD))
    for _ in range(chance.randrange(4)):
        key = chance.choice([*GOOD, "unknown", "params", "", "\ud800"])
        if chance.random() < 0.3 and isinstance(document.get("params"), dict):
            names = ["crf", "blur", "fit", "preset", "box_smoothing", "__class__", "x" * 50]
            document["params"][chance.choice(names)] = copy.deepcopy(chance.choice(VALUES))
        elif chance.random() < 0.2:
            document.pop(key, None)
        else:
            document[key] = copy.deepcopy(chance.choice(VALUES))
    data = bytearray(json.dumps(document, ensure_ascii=chance.random() < 0.5).encode(
        "utf-8", "surrogatepass"))  # fmt: skip
    for _ in range(chance.choice([0, 0, 1, 3])):
        place = chance.randrange(len(data) + 1)
        if chance.random() < 0.5:
            data[place:place] = chance.choice(TOKENS)
        else:
            del data[place : place + chance.randrange(1, 20)]
    return bytes(data)


def main() -> int:
    """Fuzz for a while; 1 and the input's repr at the first broken promise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    until = time.monotonic() + options.seconds
    runs = accepted = 0
    while time.monotonic() < until:
        data = mutate(chance)
        try:
            accepted += fuzz_one(data)
        except Exception as exc:
            print(f"after {runs} inputs: {exc!r} from {data!r}")
            return 1
        runs += 1
    print(f"{runs} inputs, {accepted} accepted, no promise broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
