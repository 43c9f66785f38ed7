"""DWPose through mmpose, as the reference runs it. Needs the mm stack: scripts/install-mm.sh.

Only mmpose's network classes are used. Frames and points go through `dwpose`, so this detector and
`onnx` differ only in the library that computes the network.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.faces.dwpose import HEIGHT, N_POINTS, WIDTH, DwposeDetector, Float
from musetalk_pipeline.networks.checkpoint import find_weights, load_network, read_weights
from musetalk_pipeline.networks.precision import forbid_tf32, naming_lost_gpu

# mmpose's rtmpose-l_8xb32-270e_coco-ubody-wholebody-384x288.py, which the reference uses. It sets
# SyncBN, which on one device is BN with torch's own epsilon (not CSPNeXt's default of 0.001).
_BACKBONE: dict[str, Any] = {
    "arch": "P5",
    "expand_ratio": 0.5,
    "deepen_factor": 1.0,
    "widen_factor": 1.0,
    "out_indices": (4,),
    "channel_attention": True,
    "norm_cfg": {"type": "BN"},
    "act_cfg": {"type": "SiLU"},
}
_HEAD: dict[str, Any] = {
    "in_channels": 1024,
    "out_channels": N_POINTS,
    "input_size": (WIDTH, HEIGHT),
    "in_featuremap_size": (WIDTH // 32, HEIGHT // 32),
    "simcc_split_ratio": 2.0,
    "final_layer_kernel_size": 7,
    "gau_cfg": {
        "hidden_dims": 256,
        "s": 128,
        "expansion_factor": 2,
        "dropout_rate": 0.0,
        "drop_path": 0.0,
        "act_fn": "SiLU",
        "use_rel_bias": False,
        "pos_enc": False,
    },
}


class RtmposeL(nn.Module):
    """RTMPose-l whole-body: (n, 3, 384, 288) to (n, 133, 576) over x and (n, 133, 768) over y."""

    def __init__(self) -> None:
        super().__init__()
        backbones, heads = _import_mmpose()
        self.backbone = backbones.CSPNeXt(**_BACKBONE)
        self.head = heads.RTMCCHead(**_HEAD)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distributions of each point over half pixels of the input, unnormalised."""
        over_x, over_y = self.head(self.backbone(pictures))
        return over_x, over_y


def load_rtmpose(path: Path) -> RtmposeL:
    """Load the published DWPose checkpoint of mmengine, which holds NumPy objects besides tensors.

    Raises:
        ModelLoadFailed: no file, not this network's, or the mm stack is missing.
    """
    found = find_weights(path.parent, path.name)
    return load_network(RtmposeL, read_weights(found, tolerate_objects=True))


class MmposeDetector(DwposeDetector):
    """DWPose by mmpose on `device`. `faces`: finds the person, see DwposeDetector."""

    def __init__(
        self, path: Path, device: str = "cpu", faces: LandmarkDetector | None = None
    ) -> None:
        self._device = torch.device(device)
        forbid_tf32(self._device)
        model = load_rtmpose(path).to(self._device)
        # 0.28 s a picture on one core in any batch, against 0.29 to 0.32 s (measured).
        self._model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__("mmpose", self._run, faces)

    @torch.inference_mode()
    def _run(self, inputs: Float) -> tuple[Float, Float]:
        with naming_lost_gpu("landmark network", self._device):
            pictures = torch.from_numpy(inputs).to(self._device, memory_format=torch.channels_last)
            over_x, over_y = self._model(pictures)
            return over_x.cpu().numpy(), over_y.cpu().numpy()


def _import_mmpose() -> tuple[Any, Any]:
    """Return mmpose's packages of backbones and heads."""
    try:
        with warnings.catch_warnings():
            # Deprecations of torch.jit in mmengine and mmcv cannot be addressed here.
            warnings.simplefilter("ignore")
            _fill_in_operators()
            return (
                importlib.import_module("mmpose.models.backbones"),
                importlib.import_module("mmpose.models.heads"),
            )
    except ImportError as exc:
        raise ModelLoadFailed(
            "The landmark detector `mmpose` needs the mm stack, which is not installed here "
            f"({exc}): run scripts/install-mm.sh, or choose the detector `onnx`."
        ) from exc


def _fill_in_operators() -> None:
    """Let mmpose be imported over mmcv-lite, mmcv without compiled operators.

    mmpose imports every model that it has, and four of them (EDPose, Deformable DETR, DEKR,
    PoseWarper) look up compiled operators while being imported. RTMPose uses none. If mmcv has its
    operators, nothing is done; if not, looking one up succeeds and calling it fails.
    """
    name = "mmcv._ext"
    if importlib.util.find_spec("mmcv") is None or name in sys.modules:
        return
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = _NoOperators(name)


class _NoOperators(types.ModuleType):
    """Replaces mmcv's compiled module. It has every operator, but none can be called.

    Its specification has no loader, which is how mmcv itself recognises that there are no
    operators.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None)

    def __getattr__(self, operator: str) -> Any:
        if operator.startswith("__"):
            raise AttributeError(operator)

        def refuse(*_args: object, **_kwargs: object) -> None:
            raise NotImplementedError(f"mmcv-lite lacks the compiled operator {operator}")

        return refuse
