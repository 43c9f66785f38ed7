"""The arithmetic that every DWPose detector shares, without any network library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces import make_detector
from musetalk_pipeline.faces.dwpose import (
    BATCH_FRAMES,
    FACE,
    HEIGHT,
    MEAN_RGB,
    MIRROR_ORDER,
    N_POINTS,
    STD_RGB,
    WEIGHTS,
    WIDTH,
    X_BINS,
    Y_BINS,
    DwposeDetector,
    View,
    decode,
    network_input,
    person_around,
    run_flip_test,
)
from musetalk_pipeline.faces.mesh import MeshDetector

Float = NDArray[np.float32]
sizes = st.integers(16, 4000)


def peaks(bins: Float, n_bins: int) -> Float:
    """Gaussians of height 1 around (n, K) bins, as the network is trained to give."""
    place = np.arange(n_bins, dtype=np.float32)
    return np.exp(-0.5 * ((place - bins[..., None]) / 6) ** 2).astype(np.float32)


class SpotNetwork:
    """Stands for a trained network: every point lies on the brightest spot of the input.

    Left points say so with less certainty than right ones, so that the flip test's exchange shows.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, inputs: Float) -> tuple[Float, Float]:
        self.batches.append(len(inputs))
        flat = inputs.mean(1).reshape(len(inputs), -1)
        rows, columns = np.divmod(flat.argmax(1), WIDTH)
        sure = np.where(np.arange(N_POINTS) < MIRROR_ORDER, 0.5, 1.0).astype(np.float32)[:, None]
        over_x = peaks(np.repeat(columns[:, None], N_POINTS, 1) * 2.0, X_BINS)
        over_y = peaks(np.repeat(rows[:, None], N_POINTS, 1) * 2.0, Y_BINS)
        return over_x * sure, over_y * sure


def spot(width: int, height: int, x: int, y: int, radius: int) -> NDArray[np.uint8]:
    frame = np.zeros((height, width, 3), np.uint8)
    distance = np.hypot(*np.mgrid[-y : height - y, -x : width - x])
    frame[:] = (255 * np.exp(-0.5 * (distance / radius) ** 2))[..., None]
    return frame


@given(sizes, sizes)
def test_a_view_holds_the_whole_frame_in_the_networks_shape(width: int, height: int) -> None:
    view = View.of_person(Box(0, 0, width, height))
    assert view.size[0] / view.size[1] == pytest.approx(WIDTH / HEIGHT, rel=1e-5)
    assert tuple(view.centre) == (width / 2, height / 2)
    # One side is 1.25 times the frame's, the other at least so.
    wider, higher = view.size[0] / (1.25 * width), view.size[1] / (1.25 * height)
    assert min(wider, higher) == pytest.approx(1, rel=1e-5)


@given(sizes, sizes, st.floats(0, 1), st.floats(0, 1))
def test_points_come_back_to_where_they_were(
    width: int, height: int, right: float, down: float
) -> None:
    view = View.of_person(Box(0, 0, width, height))
    point = np.array([right * width, down * height])
    in_input = view.warp_matrix() @ np.append(point, 1)
    back = view.to_frame(in_input.astype(np.float32))
    assert np.abs(back - point).max() < 1e-3 * max(width, height)


def test_mirroring_twice_changes_nothing() -> None:
    assert sorted(MIRROR_ORDER) == list(range(N_POINTS))
    assert (MIRROR_ORDER[MIRROR_ORDER] == np.arange(N_POINTS)).all()


def test_a_face_in_the_mirror_is_a_face_in_the_same_order() -> None:
    """The 68 points of a drawn symmetric face, mirrored, are its points in the mirror order."""
    face = symmetric_face()
    order = MIRROR_ORDER[FACE] - FACE.start
    mirrored = face[order] * (-1, 1)
    np.testing.assert_allclose(mirrored, face, atol=1e-9)


def symmetric_face() -> NDArray[np.float64]:
    """iBUG's 68 points on a face with x = 0 as its axis; x grows to the right of the picture."""
    jaw = [(-np.cos(angle), np.sin(angle)) for angle in np.linspace(0, np.pi, 17)]
    brow = [(-0.8, -0.4), (-0.7, -0.5), (-0.5, -0.55), (-0.3, -0.5), (-0.15, -0.45)]
    brows = brow + [(-x, y) for x, y in reversed(brow)]
    nose = [(0, y) for y in (-0.3, -0.2, -0.1, 0)]
    nose += [(-0.2, 0.1), (-0.1, 0.12), (0, 0.14), (0.1, 0.12), (0.2, 0.1)]
    # An eye starts at the corner on the picture's left: outer for the one, inner for the other.
    eye = [(-0.6, -0.3), (-0.5, -0.35), (-0.4, -0.34), (-0.25, -0.3), (-0.4, -0.26), (-0.5, -0.27)]
    other = [(-x, y) for x, y in (eye[3], eye[2], eye[1], eye[0], eye[5], eye[4])]
    outer = [(-0.4, 0.5), (-0.25, 0.45), (-0.1, 0.42), (0, 0.44), (0.1, 0.42), (0.25, 0.45)]
    outer += [(0.4, 0.5), (0.25, 0.6), (0.1, 0.64), (0, 0.65), (-0.1, 0.64), (-0.25, 0.6)]
    inner = [(-0.3, 0.5), (-0.1, 0.48), (0, 0.49), (0.1, 0.48), (0.3, 0.5)]
    inner += [(0.1, 0.55), (0, 0.56), (-0.1, 0.55)]
    face = np.array(jaw + brows + nose + eye + other + outer + inner)
    assert face.shape == (68, 2)
    return face


def test_pixels_are_normalised_rgb() -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[..., 0], frame[..., 1], frame[..., 2] = 10, 20, 30  # blue, green, red
    inputs, _ = network_input([frame])
    expected = (np.array([30, 20, 10]) - MEAN_RGB) / STD_RGB
    np.testing.assert_allclose(inputs[0, :, HEIGHT // 2, WIDTH // 2], expected, rtol=1e-5)
    # The frame fills four fifths; around it there is black.
    black = -np.array(MEAN_RGB) / STD_RGB
    np.testing.assert_allclose(inputs[0, :, 2, 2], black, rtol=1e-5)


def test_decode_takes_the_highest_bins_and_the_lower_score() -> None:
    over_x, over_y = np.zeros((1, 2, X_BINS), np.float32), np.zeros((1, 2, Y_BINS), np.float32)
    over_x[0, 0, 101], over_y[0, 0, 7] = 0.8, 0.6
    over_x[0, 1, 5] = 0.9  # nothing over y: no point
    points, scores = decode(over_x, over_y)
    np.testing.assert_allclose(points, [[[50.5, 3.5], [-0.5, -0.5]]])
    np.testing.assert_allclose(scores, [[0.6, 0.0]])


def test_the_flip_test_averages_over_the_mirror() -> None:
    network = SpotNetwork()
    frame = spot(WIDTH, HEIGHT, 100, 200, 5)
    inputs, _ = network_input([frame])
    over_x, over_y = run_flip_test(network, inputs)
    assert network.batches == [2]
    # Each point is as sure as itself and its mirror twin on average.
    single = np.arange(N_POINTS) == MIRROR_ORDER
    np.testing.assert_allclose(over_y[0].max(-1), np.where(single, 1.0, 0.75), atol=1e-6)
    # A mirrored column c is bin 2 * (287 - c) before and 575 - that = 2 * c + 1 after mirroring.
    column = np.divmod(inputs[0].mean(0).argmax(), WIDTH)[1]
    assert (np.abs(over_x[0].argmax(-1) - (2 * column + 0.5)) <= 0.5).all()


@pytest.mark.parametrize(
    ("width", "height", "x", "y"),
    [(640, 480, 200, 130), (480, 640, 400, 600), (1280, 720, 1200, 30), (288, 384, 9, 370)],
)
def test_points_lie_on_what_is_in_the_frame(width: int, height: int, x: int, y: int) -> None:
    detector = DwposeDetector("onnx", SpotNetwork())
    [found] = detector.detect([spot(width, height, x, y, radius=width // 24)])
    assert found is not None
    assert found.points.shape == (68, 2) and found.points.dtype == np.float32
    input_pixel = View.of_person(Box(0, 0, width, height)).size[0] / WIDTH
    assert np.abs(found.points - (x, y)).max() <= 1.5 * input_pixel
    assert 0.75 <= found.score <= 1


def small_face() -> NDArray[np.uint8]:
    """A head of 80 pixels in a large dim frame, and beside its chin the brightest spot."""
    skimage = pytest.importorskip("skimage")
    head = np.ascontiguousarray(skimage.data.astronaut()[0:190, 130:310, ::-1]) // 4 * 3
    frame = np.full((720, 1280, 3), 90, np.uint8)
    frame[200:280, 900:976] = cv2.resize(head, (76, 80), interpolation=cv2.INTER_AREA)
    cv2.circle(frame, (940, 300), 2, (255, 255, 255), -1)
    return frame


def test_a_small_face_is_looked_at_closely_if_mesh_says_where_it_is() -> None:
    """Q27: in the whole frame's view the head has 22 of 384 rows."""
    frame, seen = small_face(), []

    def network(inputs: Float) -> tuple[Float, Float]:
        seen.append(inputs[0])
        return SpotNetwork()(inputs)

    heights, errors = [], []
    for faces in (None, MeshDetector()):
        [found] = DwposeDetector("onnx", network, faces).detect([frame])
        rgb = seen[-1].transpose(1, 2, 0) * STD_RGB + MEAN_RGB
        picture = np.ascontiguousarray(rgb[..., ::-1].round().clip(0, 255).astype(np.uint8))
        [in_view] = MeshDetector().detect([picture])
        heights.append(0.0 if in_view is None else float(np.ptp(in_view.points[:, 1])))
        assert found is not None
        errors.append(np.abs(found.points - (940, 300)).max())
    assert heights[0] < 20 and heights[1] > 60  # brows to chin, in pixels of the network
    assert errors[1] < 1.5  # points come back to where they are in the frame


@pytest.mark.parametrize(
    ("low", "high", "box"),
    [
        ((600, 300), (640, 350), Box(545, 262, 695, 463)),
        ((10, 20), (110, 120), Box(0, 0, 210, 345)),  # at the edge
        ((300, 100), (900, 700), Box(0, 0, 1280, 720)),  # a close-up is the whole frame
    ],
)
def test_a_person_is_head_and_shoulders_around_a_face(
    low: tuple[int, int], high: tuple[int, int], box: Box
) -> None:
    points = np.tile(np.array([low, high], np.float32), (34, 1))
    assert person_around(points, 1280, 720) == box


def test_where_mesh_finds_no_face_the_whole_frame_is_the_person() -> None:
    frame = spot(640, 480, 200, 130, 30)
    network = SpotNetwork()
    [plain] = DwposeDetector("onnx", network).detect([frame])
    [asked] = DwposeDetector("onnx", network, MeshDetector()).detect([frame])
    assert plain is not None and asked is not None
    np.testing.assert_array_equal(asked.points, plain.points)


def test_a_located_face_is_refined_in_its_own_view_whoever_else_is_there() -> None:
    """The same frame twice, once for each of its people; the whole frame would show one."""
    frame = small_face()
    frame[200:280, 300:376] = frame[200:280, 900:976]
    seen: list[Float] = []

    def network(inputs: Float) -> tuple[Float, Float]:
        seen.append(inputs.copy())
        return SpotNetwork()(inputs)

    mesh = MeshDetector()
    faces = [landmarks for _, landmarks in mesh.all_faces(frame, with_small=True)]
    assert len(faces) == 2
    detector = DwposeDetector("onnx", network)
    refined = detector.refine([frame, frame], faces)
    assert len(refined) == 2 and len(seen) == 1
    for face, found, view in zip(faces, refined, seen[0][:2], strict=True):
        rgb = view.transpose(1, 2, 0) * STD_RGB + MEAN_RGB
        picture = np.ascontiguousarray(rgb[..., ::-1].round().clip(0, 255).astype(np.uint8))
        [in_view] = mesh.detect([picture])
        assert in_view is not None and np.ptp(in_view.points[:, 1]) > 60
        # The face is in the middle of its view.
        assert abs(in_view.points[:, 0].mean() - WIDTH / 2) < WIDTH / 8
        assert found is not None and face.points.shape == found.points.shape
    assert detector.refine([], []) == []


def test_frames_of_any_size_go_through_in_bounded_batches() -> None:
    network = SpotNetwork()
    detector = DwposeDetector("onnx", network)
    frames = [spot(320 + 16 * i, 240, 20 + 30 * i, 100, 15) for i in range(2 * BATCH_FRAMES + 1)]
    together = detector.detect(frames)
    assert network.batches == [2 * BATCH_FRAMES, 2 * BATCH_FRAMES, 2]
    for frame, landmarks in zip(frames, together, strict=True):
        [alone] = detector.detect([frame])
        assert landmarks is not None and alone is not None
        np.testing.assert_array_equal(landmarks.points, alone.points)
    assert detector.detect([]) == []


def test_scores_are_within_0_and_1() -> None:
    def loud(inputs: Float) -> tuple[Float, Float]:
        over_x, over_y = SpotNetwork()(inputs)
        return over_x * 7, over_y * 7

    [found] = DwposeDetector("onnx", loud).detect([spot(64, 64, 30, 30, 5)])
    assert found is not None and found.score == 1.0


def test_importing_faces_loads_no_heavy_library() -> None:
    script = (
        "import sys, musetalk_pipeline.faces\n"
        "print([name for name in ('torch', 'cv2', 'onnxruntime', 'mmpose') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "command"), [("onnx", "faces.onnx export"), ("mmpose", "fetch")])
def test_missing_weights_name_the_command_that_helps(
    tmp_path: Path, name: str, command: str
) -> None:
    with pytest.raises(ModelLoadFailed, match=command):
        make_detector(name, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadFailed, match="--models DIR"):
        make_detector(name)  # type: ignore[arg-type]


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="mesh, onnx or mmpose"):
        make_detector("dlib")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("package", "name", "command"),
    [
        ("onnxruntime", "onnx", "pip install onnxruntime"),
        ("mmpose.models.backbones", "mmpose", "scripts/install-mm.sh"),
    ],
)
def test_a_missing_package_names_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str, command: str
) -> None:
    import torch

    (tmp_path / WEIGHTS).parent.mkdir()
    torch.save({"state_dict": {"key": torch.zeros(1)}}, tmp_path / WEIGHTS)
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself does for "not there"
    with pytest.raises(ModelLoadFailed, match=command):
        make_detector(name, tmp_path)  # type: ignore[arg-type]
