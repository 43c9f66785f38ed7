"""Encoded pieces are files at the ingress, whatever becomes of the nodes that made them."""

from pathlib import Path

import numpy as np
import pytest

from musetalk_pipeline.artifacts import Piece
from musetalk_pipeline.errors import StageFailed
from musetalk_pipeline.plan import Segment
from serve_app.graph.pieces import PieceFiles
from serve_app.graph.scratch import Scratch

ATTEMPT = "a" * 32


def piece(start: int, data: bytes) -> Piece:
    return Piece(Segment(0, start, start + 10, 0, start, 1), np.frombuffer(data, np.uint8), 10)


@pytest.fixture
def files(tmp_path: Path) -> PieceFiles:
    return PieceFiles(Scratch(tmp_path / "scratch", 3600.0), share=lambda data: data.tobytes())


async def test_a_piece_is_shared_as_it_was_made(files):
    paths = [await files.keep(ATTEMPT, piece(start, bytes([start]) * 1000)) for start in (10, 0)]
    assert await files.shared(paths[::-1]) == [bytes([0]) * 1000, bytes([10]) * 1000]


async def test_a_piece_that_is_made_again_replaces_the_first(files):
    first = await files.keep(ATTEMPT, piece(0, b"longer than the second"))
    again = await files.keep(ATTEMPT, piece(0, b"second"))
    assert first == again
    assert await files.shared([again]) == [b"second"]


async def test_the_pieces_of_an_attempt_go_with_it(files, tmp_path):
    path = await files.keep(ATTEMPT, piece(0, b"x"))
    other = await files.keep("b" * 32, piece(0, b"y"))
    await files.release(ATTEMPT)
    assert not path.exists() and other.exists()


async def test_a_disk_that_refuses_is_a_failure_of_this_worker(files, tmp_path):
    """Another worker may do the job; the bytes of the error do not reach the caller."""
    (tmp_path / "scratch" / ATTEMPT).write_text("in the way")
    with pytest.raises(StageFailed):
        await files.keep(ATTEMPT, piece(0, b"x"))


async def test_a_folder_that_cannot_be_written_to_is_one_as_well(files, tmp_path):
    pieces = tmp_path / "scratch" / ATTEMPT / "pieces"
    pieces.parent.mkdir(mode=0o700)
    pieces.write_text("in the way")
    with pytest.raises(StageFailed, match="cannot write"):
        await files.keep(ATTEMPT, piece(0, b"x"))
