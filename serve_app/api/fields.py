"""Names and sizes of the public job API: strict, and helpful about it.

`POST /generate` and claims are read leniently instead (lenient.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from musetalk_pipeline.options import FrameOptions
from musetalk_pipeline.pixels.picture import target_size
from serve_app.contract.requests import JobCreate, Params

MAX_SHOWN_CHARS = 80
# Other programs' names for these fields, which are not similar enough to be found by spelling.
OTHER_NAMES = {
    "id": "musetalk_job_id",
    "job_id": "musetalk_job_id",
    "video": "video_url",
    "source_url": "video_url",
    "audio": "audio_url",
    "speech_url": "audio_url",
    "ratio": "aspect_ratio",
    "aspect": "aspect_ratio",
    "size": "resolution",
    "callback_url": "webhook_url",
    "notify_url": "webhook_url",
    "options": "params",
    "parameters": "params",
}
# Sizes are checked against a small square source, which allows every size and shape that any source
# allows.
_SOURCE_PX = 512

_LITERAL = re.compile(r"(\d{1,5})x(\d{1,5})")
_SHORT_SIDE = re.compile(r"(\d{1,5})p")


def shown_name(name: object) -> str:
    """Return a name from a request as an answer may repeat it: printable and short."""
    text = "".join(c if c.isprintable() else "?" for c in str(name)[: MAX_SHOWN_CHARS + 1])
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


def shown_path(parts: Sequence[object]) -> str:
    """Return the path of a field in a document (`params.crf`), shortened if need be."""
    return shown_name(".".join(shown_name(part) for part in parts))


def unknown_field(parts: Sequence[object]) -> str:
    """Return a sentence about the unknown field at `parts`, with the one that may be meant."""
    meant = _meant(str(parts[-1]), inside_params=len(parts) > 1)
    sentence = f"`{shown_path(parts)}` is not a field of this request"
    # A field of another request is not what was meant.
    is_other = meant is not None and meant != shown_path(parts)
    return f"{sentence}; did you mean `{meant}`?" if is_other else f"{sentence}."


def _meant(name: str, *, inside_params: bool) -> str | None:
    """Return the field that a misspelt or misplaced name stands for."""
    if len(name) > MAX_SHOWN_CHARS:
        return None
    word = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    at_top = {field: field for field in JobCreate.model_fields}
    in_params = {field: f"params.{field}" for field in Params.model_fields}
    # Names of the place where it was written come first, unless it is exactly one of the other.
    here, there = (in_params, at_top) if inside_params else (at_top, in_params)
    if word in here or word in there:
        return here.get(word) or there[word]
    if word in OTHER_NAMES:
        return OTHER_NAMES[word]
    for known in (here, there):
        if close := difflib.get_close_matches(word, known, n=1, cutoff=0.75):
            return known[close[0]]
    return None


def check_size(aspect_ratio: str | None, resolution: str | None) -> tuple[str, ...]:
    """Check that the pipeline can make a picture; return a sentence about an odd size.

    Raises:
        InvalidOptions: the pipeline would refuse it for every source.
    """
    target_size(_SOURCE_PX, _SOURCE_PX, FrameOptions(resolution, aspect_ratio))
    return odd_size(resolution)


def odd_size(resolution: str | None) -> tuple[str, ...]:
    """Return a sentence if the pipeline makes a slightly different size, else nothing."""
    word = (resolution or "").strip().lower()
    if literal := _LITERAL.fullmatch(word):
        made = "x".join(str(int(side) & ~1) for side in literal.groups())
        given = "x".join(str(int(side)) for side in literal.groups())
    elif short := _SHORT_SIDE.fullmatch(word):
        _, height = target_size(_SOURCE_PX, _SOURCE_PX, FrameOptions(word, None))
        made, given = f"{height}p", f"{int(short[1])}p"
    else:
        return ()
    if made == given:
        return ()
    return (f"The resolution `{given}` is odd and H.264 needs even sides, so `{made}` is used.",)
