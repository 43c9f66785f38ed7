"""Forms as strangers send them: in chunks of any size, broken anywhere, never held as a whole."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from serve_app.gate.forms import FormInvalid, PartBegin, PartData, PartEnd, part_events

SCOPE = {"headers": [(b"Content-Type", b"multipart/form-data; boundary=the-boundary")]}
CONTENT = b"\r\n--the-boundar\r\n--x" + bytes(range(256)) * 8
FORM = (
    b'--the-boundary\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"crf": 20}\r\n'
    b'--the-boundary\r\nContent-Disposition: form-data; name="video"; filename="\xc3\xa4.mp4"\r\n'
    b"Content-Type: video/mp4\r\n\r\n" + CONTENT + b"\r\n--the-boundary--\r\n"
)


async def in_chunks(form: bytes, sizes: random.Random) -> AsyncIterator[bytes]:
    while form:
        size = sizes.choice((1, 2, 7, 50, 1000))
        yield form[:size]
        form = form[size:]


async def parts(form: bytes, seed: int = 0) -> list[tuple[str, str | None, bytes]]:
    """Read a whole form; name, file name and content of each part."""
    found: list[tuple[str, str | None, bytes]] = []
    is_open = False
    async for event in part_events(SCOPE, in_chunks(form, random.Random(seed)), max_parts=8):
        match event:
            case PartBegin(name, file_name):
                assert not is_open
                found.append((name, file_name, b""))
                is_open = True
            case PartData(data):
                assert is_open
                name, file_name, content = found[-1]
                found[-1] = (name, file_name, content + data)
            case PartEnd():
                is_open = False
    assert not is_open
    return found


@pytest.mark.parametrize("seed", range(20))
async def test_the_chunks_of_a_form_do_not_matter(seed: int) -> None:
    expected = [("params", None, b'{"crf": 20}'), ("video", "ä.mp4", CONTENT)]
    assert await parts(FORM, seed) == expected


async def test_a_form_that_is_cut_off_anywhere_is_noticed() -> None:
    whole = len(FORM) - 2  # the last line end may be missing
    for end in [*range(0, 300), *range(300, whole, 97), whole - 1]:
        with pytest.raises(FormInvalid):
            await parts(FORM[:end])
    assert len(await parts(FORM[:whole])) == 2


@pytest.mark.parametrize("seed", range(30))
async def test_a_form_with_wrong_bytes_is_read_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    form = bytearray(FORM)
    for _ in range(chance.choice((1, 5, 50))):
        form[chance.randrange(400)] = chance.randrange(256)
    try:
        assert len(await parts(bytes(form), seed)) <= 8
    except FormInvalid as exc:
        assert str(exc).endswith(".")


async def test_headers_and_parts_without_end_are_refused() -> None:
    begin = b"--the-boundary\r\n"
    for form in (
        begin + b"X: " + b"a" * 100_000,
        begin + b"X: a\r\n" * 1000,
        (begin + b"Content-Disposition: form-data; name=a\r\n\r\nx\r\n") * 9 + b"--the-boundary--",
        begin + b"Content-Disposition: form-data; name=" + b"n" * 65 + b"\r\n\r\nx",
    ):
        with pytest.raises(FormInvalid):
            await parts(form)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=" + "b" * 500]
)
async def test_a_form_needs_a_usable_boundary(kind: str) -> None:
    scope = {"headers": [(b"content-type", kind.encode())]}
    with pytest.raises(FormInvalid):
        async for _ in part_events(scope, in_chunks(FORM, random.Random(0)), 8):
            pass
