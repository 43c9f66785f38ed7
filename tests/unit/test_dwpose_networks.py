"""Both DWPose detectors with the same random weights on a real face, against mmpose itself.

Needs the mm stack (scripts/install-mm.sh). With random weights the points mean nothing, but they
depend on every pixel and every weight.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_pipeline.__main__ import _load, _parser
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces import Landmarks, make_detector
from musetalk_pipeline.faces.dwpose import (
    FACE,
    MIRROR_ORDER,
    WEIGHTS,
    DwposeDetector,
    network_input,
    person_around,
    run_flip_test,
)
from musetalk_pipeline.faces.presence import ByScore
from serve_app.config.settings import AppArgs, PoolSettings
from serve_app.graph.builders import build_detector

missing = [name for name in ("mmpose", "mmcv", "onnxruntime") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"{missing} not installed: scripts/install-mm.sh"),
    # mmpose's channel attention, on every call.
    pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast:FutureWarning"),
]

SEED = 2  # with it, no point's best two bins tie: they differ by 16 times the detectors' difference
Frame = NDArray[np.uint8]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a random DWPose checkpoint, as mmengine writes it, and its export."""
    import torch

    from musetalk_pipeline.faces.mmpose import RtmposeL
    from musetalk_pipeline.faces.onnx import MODEL, main

    models = tmp_path_factory.mktemp("models")
    (models / WEIGHTS).parent.mkdir()
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in RtmposeL().state_dict().items()}
    tensors = {key: torch.from_numpy(random_tensor(key, tuple(s))) for key, s in shapes.items()}
    # NumPy objects beside the tensors, which torch's own safe reader refuses.
    meta = {"epoch": 9, "seed": np.int64(21), "ap": np.float64(0.5), "sigmas": np.arange(3.0)}
    torch.save({"meta": meta, "state_dict": tensors}, models / WEIGHTS)
    assert main(["export", str(models / WEIGHTS), str(models / MODEL)]) == 0
    return models


def random_tensor(key: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Values of a size that keeps the signal alive through all layers; any library's the same."""
    noise = np.random.default_rng(zlib.crc32(f"{SEED}:{key}".encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(noise)
    elif len(shape) >= 2:
        values = noise * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith(("weight", "scale", ".g", "gamma")):
        values = 1 + 0.1 * noise
    else:
        values = 0.05 * noise
    return np.asarray(values, np.float32)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """The same face in frames of four shapes."""
    skimage = pytest.importorskip("skimage")
    bgr = skimage.data.astronaut()[:, :, ::-1]
    return [np.ascontiguousarray(part) for part in (bgr, bgr[:301], bgr[:, 100:], bgr[:400, :300])]


@pytest.fixture(scope="module")
def mmpose_detector(models: Path) -> DwposeDetector:
    from musetalk_pipeline.faces.mmpose import MmposeDetector

    return MmposeDetector(models / WEIGHTS)


@pytest.fixture(scope="module")
def onnx_detector(models: Path) -> DwposeDetector:
    from musetalk_pipeline.faces.onnx import MODEL, OnnxDetector

    return OnnxDetector(models / MODEL)


def points_of(found: Sequence[Landmarks | None]) -> NDArray[np.float32]:
    return np.stack([landmarks.points for landmarks in found if landmarks is not None])


def test_onnx_and_mmpose_agree_within_a_hundredth_of_a_pixel(
    mmpose_detector: DwposeDetector, onnx_detector: DwposeDetector, frames: list[Frame]
) -> None:
    first, second = mmpose_detector.detect(frames), onnx_detector.detect(frames)
    assert points_of(first).shape == (len(frames), 68, 2)
    assert np.abs(points_of(first) - points_of(second)).max() < 0.01
    for a, b in zip(first, second, strict=True):
        assert a is not None and b is not None
        assert a.score == pytest.approx(b.score, abs=1e-4)
        # Many different points, not one that both fall back to.
        assert len(np.unique(a.points, axis=0)) > 20


def test_their_distributions_agree_to_float_precision(
    mmpose_detector: DwposeDetector, onnx_detector: DwposeDetector, frames: list[Frame]
) -> None:
    inputs, _ = network_input(frames[:1])
    pairs = zip(
        run_flip_test(mmpose_detector._network, inputs),
        run_flip_test(onnx_detector._network, inputs),
        strict=True,
    )
    for mine, other in pairs:
        assert np.abs(mine - other).max() < 2e-4 * np.abs(mine).max()


def test_a_batch_answers_like_single_frames(
    onnx_detector: DwposeDetector, frames: list[Frame]
) -> None:
    together = points_of(onnx_detector.detect(frames))
    alone = np.concatenate([points_of(onnx_detector.detect([frame])) for frame in frames])
    assert np.abs(together - alone).max() < 0.01


def mmpose_inference() -> ModuleType:
    """mmpose/apis/inference.py by itself: its package wants torchvision for drawing."""
    import mmpose

    path = Path(mmpose.__file__).parent / "apis" / "inference.py"
    spec = importlib.util.spec_from_file_location("mmpose_apis_inference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mmpose_network(mm: ModuleType, models: Path) -> Any:
    """The published configuration's network with the weights of `models`."""
    import mmpose
    import torch

    name = "rtmpose-l_8xb32-270e_coco-ubody-wholebody-384x288.py"
    folder = ".mim/configs/wholebody_2d_keypoint/rtmpose/ubody"
    network = mm.init_model(Path(mmpose.__file__).parent / folder / name, None, "cpu")
    network.load_state_dict(torch.load(models / WEIGHTS, weights_only=False)["state_dict"])
    return network


@pytest.mark.filterwarnings("ignore")  # mmpose's and mmengine's own
def test_points_are_those_of_mmposes_own_pipeline(
    models: Path, mmpose_detector: DwposeDetector, frames: list[Frame]
) -> None:
    """What the reference calls: init_model of the published configuration, inference_topdown."""
    mm = mmpose_inference()
    network = mmpose_network(mm, models)
    assert list(network.dataset_meta["flip_indices"]) == MIRROR_ORDER.tolist()
    for frame, found in zip(frames, mmpose_detector.detect(frames), strict=True):
        assert found is not None
        [person] = mm.inference_topdown(network, frame)
        expected = person.pred_instances
        assert np.abs(expected.keypoints[0, FACE] - found.points).max() < 0.01
        score = expected.keypoint_scores[0, FACE].clip(0, 1).mean()
        assert score == pytest.approx(found.score, abs=1e-4)


@pytest.mark.filterwarnings("ignore")  # mmpose's and mmengine's own
def test_a_box_around_the_face_is_what_mmpose_would_do_with_it(
    models: Path, frames: list[Frame]
) -> None:
    mm = mmpose_inference()
    network = mmpose_network(mm, models)
    frame = np.full((720, 1280, 3), 90, np.uint8)
    frame[300:500, 800:1000] = frames[0][0:200, 120:320]
    detector = make_detector("mmpose", models, person_box="face")
    assert isinstance(detector, ByScore) and isinstance(detector._detector, DwposeDetector)
    [found] = detector._detector.detect([frame])
    [face] = make_detector("mesh").detect([frame])
    assert found is not None and face is not None
    box = person_around(face.points, 1280, 720)
    assert box.width < 500
    corners = np.array([[box.x0, box.y0, box.x1, box.y1]], np.float32)
    [person] = mm.inference_topdown(network, frame, bboxes=corners)
    assert np.abs(person.pred_instances.keypoints[0, FACE] - found.points).max() < 0.01


def test_the_person_box_is_set_for_a_deployment_and_on_the_command_line(models: Path) -> None:
    args = AppArgs(
        engine="warp", landmarks="onnx", models_dir=models, person_box="face",
        pools=[PoolSettings(name="cpu")],
    )  # fmt: skip
    words = ["v.mp4", "a.wav", "--engine", "warp", "--landmarks", "onnx", "--person-box", "face"]
    typed = _load(_parser().parse_args([*words, "--models", str(models)])).detector
    for detector in (build_detector(args), typed):
        assert isinstance(detector, ByScore) and isinstance(detector._detector, DwposeDetector)
        assert detector._detector._faces is not None


def test_make_detector_gives_both_and_judges_by_score(models: Path, frames: list[Frame]) -> None:
    for name in ("onnx", "mmpose"):
        detector = make_detector(name, models)  # type: ignore[arg-type]
        assert detector.name == name
        [found] = detector.detect(frames[:1])
        assert found is None or found.score >= 0.3


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_another_networks_weights_are_refused_by_name(
    models: Path, tmp_path: Path, change: str
) -> None:
    import torch

    from musetalk_pipeline.faces.mmpose import load_rtmpose
    from musetalk_pipeline.networks.checkpoint import read_weights

    tensors = dict(read_weights(models / WEIGHTS, tolerate_objects=True).tensors)
    key = "head.cls_x.weight"
    if change == "missing":
        del tensors[key]
    elif change == "unexpected":
        key = "head.cls_z.weight"
        tensors[key] = torch.zeros(1)
    else:
        tensors[key] = tensors[key][:100]
    path = tmp_path / "other.pth"
    torch.save({"state_dict": tensors}, path)
    with pytest.raises(ModelLoadFailed, match=key) as failure:
        load_rtmpose(path)
    assert str(path) in failure.value.message


def test_a_failed_export_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from musetalk_pipeline.faces.onnx import main

    (tmp_path / "in.pth").write_bytes(b"no weights")
    assert main(["export", str(tmp_path / "in.pth"), str(tmp_path / "out.onnx")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
    assert "in.pth" in capsys.readouterr().err


def test_files_that_are_not_dwpose_are_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    from musetalk_pipeline.faces.onnx import OnnxDetector

    path = tmp_path / "other.onnx"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelLoadFailed, match="not an ONNX file"):
        OnnxDetector(path)
    node = helper.make_node("Identity", ["input"], ["simcc_x"])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 256, 192])
        for name in ("input", "simcc_x")
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    with pytest.raises(ModelLoadFailed, match="not DWPose 384x288"):
        OnnxDetector(path)


def run_python(script: str, **variables: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_mmcv_without_operators_will_do(tmp_path: Path) -> None:
    """mmcv-lite is mmcv without its compiled module; here, links to all of mmcv but that."""
    mmcv = Path(importlib.util.find_spec("mmcv").origin).parent  # type: ignore[union-attr, arg-type]
    (tmp_path / "mmcv").mkdir()
    for entry in mmcv.iterdir():
        if not entry.name.startswith("_ext."):
            (tmp_path / "mmcv" / entry.name).symlink_to(entry)
    script = """
import mmcv, torch
from musetalk_pipeline.faces.mmpose import RtmposeL
with torch.inference_mode():
    over_x, over_y = RtmposeL().eval()(torch.zeros(1, 3, 384, 288))
print(tuple(over_x.shape), tuple(over_y.shape))
from mmcv.ops import nms
try:
    nms(torch.zeros(1, 4), torch.zeros(1), 0.3)
except NotImplementedError as exc:
    print(exc)
print(mmcv.__file__)
"""
    shapes, refusal, where = run_python(script, PYTHONPATH=f"{tmp_path}:{Path.cwd()}").splitlines()
    assert where.startswith(str(tmp_path))
    assert shapes == "(1, 133, 576) (1, 133, 768)"
    assert refusal == "mmcv-lite lacks the compiled operator nms"


@pytest.mark.usefixtures("mmpose_detector")
def test_full_mmcv_is_left_alone_and_torchvision_is_not_wanted() -> None:
    import mmcv

    is_full = any(Path(mmcv.__file__).parent.glob("_ext.*"))
    kind = "module" if is_full else "_NoOperators"
    assert type(sys.modules["mmcv._ext"]).__name__ == kind
    assert "torchvision" not in sys.modules
