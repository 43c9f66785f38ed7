"""The mesh detector on real pictures: a photograph, a talking man, and pictures without a face."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces.cut_outs import MAX_TILES, tile_levels
from musetalk_pipeline.faces.mesh import MeshDetector

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
Frame = NDArray[np.uint8]
# Where a person sees them in skimage.data.astronaut(): chin, nose tip, outer eye and mouth corners.
ASTRONAUT = {8: (221, 177), 30: (223, 127), 36: (194, 101), 45: (257, 104), 48: (201, 139)}
# iBUG numbers of the mirrored face: jaw, brows, nose, eyes, mouth.
MIRROR = [
    *range(16, -1, -1),
    *range(26, 16, -1),
    *(27, 28, 29, 30, 35, 34, 33, 32, 31),
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
    *(64, 63, 62, 61, 60, 67, 66, 65),
]


@pytest.fixture(scope="module")
def detector() -> MeshDetector:
    return MeshDetector()


@pytest.fixture(scope="module")
def astronaut() -> Frame:
    return cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)


def placed(face: Frame, size: tuple[int, int], at: tuple[int, int], height: int) -> Frame:
    """Put the astronaut's head into a grey frame (width, height), `height` pixels hair to chin."""
    head = face[0:190, 130:310]
    scale = height / head.shape[0]
    head = cv2.resize(head, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frame = np.full((size[1], size[0], 3), 90, np.uint8)
    frame[at[1] : at[1] + head.shape[0], at[0] : at[0] + head.shape[1]] = head
    return frame


def test_points_lie_where_a_person_sees_them(detector: MeshDetector, astronaut: Frame) -> None:
    (found,) = detector.detect([astronaut])
    assert found is not None and found.points.shape == (68, 2)
    assert found.points.dtype == np.float32 and found.score > 0.9
    for index, place in ASTRONAUT.items():
        assert np.linalg.norm(found.points[index] - place) < 4.0, index


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="needs ../shared/golden")
def test_points_agree_with_another_detector(detector: MeshDetector) -> None:
    golden = np.load(SHARED / "golden" / "astro_landmarks.npz")["landmarks"]
    files = sorted((SHARED / "golden" / "astro").glob("*.png"))
    frames = [cv2.imread(str(file)) for file in files]
    found = [marks.points for marks in detector.detect(frames) if marks is not None]
    distance = np.linalg.norm(np.array(found) - golden, axis=2)
    assert distance.mean() < 1.5 and distance.max() < 6.0


def test_mirrored_face_gives_mirrored_points(detector: MeshDetector, astronaut: Frame) -> None:
    flipped = np.ascontiguousarray(astronaut[:, ::-1])
    one, other = detector.detect([astronaut, flipped])
    assert one is not None and other is not None
    mirrored = other.points[MIRROR] * (-1, 1) + (astronaut.shape[1], 0)
    assert np.linalg.norm(one.points - mirrored, axis=1).mean() < 1.5


@pytest.mark.parametrize("angle", [-30, 20])
def test_points_turn_with_the_face(detector: MeshDetector, astronaut: Frame, angle: int) -> None:
    turn = cv2.getRotationMatrix2D((223, 110), angle, 1.0)
    turned = cv2.warpAffine(astronaut, turn, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    one, other = detector.detect([astronaut, turned])
    assert one is not None and other is not None
    expected = one.points @ turn[:, :2].T + turn[:, 2]
    assert np.linalg.norm(other.points - expected, axis=1).mean() < 2.5


@pytest.mark.parametrize(
    ("size", "height"),
    [((1280, 720), 90), ((1920, 1080), 120), ((3840, 480), 80), ((704, 1216), 90)],
)
def test_small_faces_are_found(
    detector: MeshDetector, astronaut: Frame, size: tuple[int, int], height: int
) -> None:
    at = (size[0] * 3 // 5, size[1] // 4)
    (found,) = detector.detect([placed(astronaut, size, at, height)])
    assert found is not None
    expected = (np.array(ASTRONAUT[30]) - (130, 0)) * (height / 190) + at
    assert np.linalg.norm(found.points[30] - expected) < 0.06 * height


def test_grey_dim_and_tiny_pictures(detector: MeshDetector, astronaut: Frame) -> None:
    grey = cv2.cvtColor(cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    dim = (astronaut // 4).astype(np.uint8)
    tiny = placed(astronaut, (176, 144), (40, 10), 120)
    whole, *others = detector.detect([astronaut, grey, dim])
    assert whole is not None
    for other in others:
        assert other is not None
        assert np.linalg.norm(other.points - whole.points, axis=1).mean() < 3.0
    assert detector.detect([tiny])[0] is not None


def pictures_without_a_face() -> dict[str, Frame]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:480, 0:854]
    bars = np.stack([(x // 107 * 37) % 256, (y // 30 * 51) % 256, (x + y) % 256], axis=-1)
    return {
        "noise": rng.integers(0, 256, (480, 854, 3)).astype(np.uint8),
        "flat": np.full((1216, 704, 3), 128, np.uint8),
        "black": np.zeros((144, 176, 3), np.uint8),
        "bars": bars.astype(np.uint8),
        "coffee": cv2.cvtColor(skimage.data.coffee(), cv2.COLOR_RGB2BGR),
        "strip": np.full((16, 4000, 3), 200, np.uint8),
    }


@pytest.mark.parametrize("name", pictures_without_a_face())
def test_no_face_is_none(detector: MeshDetector, name: str) -> None:
    assert detector.detect([pictures_without_a_face()[name]]) == [None]


def test_generated_test_picture_has_no_face(detector: MeshDetector, tmp_path: Path) -> None:
    picture = tmp_path / "t.png"
    source = ["-f", "lavfi", "-i", "testsrc2=s=1280x720"]
    command = ["ffmpeg", "-v", "error", *source, "-frames:v", "1", picture]
    subprocess.run(command, check=True, timeout=60)
    assert detector.detect([cv2.imread(str(picture))]) == [None]


def test_largest_face_wins(detector: MeshDetector, astronaut: Frame) -> None:
    frame = placed(astronaut, (1280, 720), (100, 200), 180)
    frame[200:560, 800:1141] = cv2.resize(astronaut[0:190, 130:310], (341, 360))
    (found,) = detector.detect([frame])
    assert found is not None and found.points[:, 0].min() > 800


def test_most_central_of_equal_faces_wins(detector: MeshDetector, astronaut: Frame) -> None:
    frame = placed(astronaut, (1280, 720), (20, 240), 240)
    frame[240:480, 560:787] = frame[240:480, 20:247]
    (found,) = detector.detect([frame])
    assert found is not None and found.points[:, 0].min() > 560


def test_each_frame_is_seen_alone(detector: MeshDetector, astronaut: Frame) -> None:
    other = placed(astronaut, (640, 480), (200, 100), 200)
    forwards = detector.detect([astronaut, other, np.zeros_like(other), astronaut])
    assert forwards[2] is None
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda f: detector.detect([f])[0], [astronaut, other] * 4))
    for index, found in enumerate(alone):
        expected = forwards[index % 2]
        assert found is not None and expected is not None
        np.testing.assert_array_equal(found.points, expected.points)


def test_noise_hardly_moves_the_points(detector: MeshDetector, astronaut: Frame) -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 4, (8, *astronaut.shape))
    frames = [np.clip(astronaut + part, 0, 255).astype(np.uint8) for part in noise]
    points = np.array([marks.points for marks in detector.detect(frames) if marks is not None])
    assert len(points) == 8
    assert points.std(axis=0).mean() < 0.4  # pixels; the face is 105 high


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_tiles_stay_inside_and_are_bounded(width: int, height: int) -> None:
    tiles = [tile for level in tile_levels(width, height) for tile in level]
    assert len(tiles) <= MAX_TILES
    for x, y, side in tiles:
        assert x >= 0 and y >= 0 and x + side <= width and y + side <= height


def test_first_level_of_tiles_covers_the_frame() -> None:
    covered = np.zeros((720, 1280), bool)
    for x, y, side in tile_levels(1280, 720)[0]:
        covered[y : y + side, x : x + side] = True
    assert covered.all()


def test_missing_wheel_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ModelLoadFailed, match="pip install --no-deps mediapipe"):
        MeshDetector()


def test_mediapipe_is_never_imported() -> None:
    code = (
        "import sys; from musetalk_pipeline.faces.mesh import MeshDetector; MeshDetector();"
        "assert not any(name.split('.')[0] == 'mediapipe' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
