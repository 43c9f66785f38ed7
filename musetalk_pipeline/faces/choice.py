"""Which landmark detector `auto` means: one rule for the command line and the application."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

DetectorName = Literal["mesh", "onnx", "mmpose"]


def best_landmarks(engine: Literal["musetalk", "warp"], models_dir: Path | None) -> DetectorName:
    """Return the reference's detector for the reference's engine if it can run, else `mesh`.

    `mmpose` and `onnx` need their package and their file below `models_dir`.
    """
    if engine == "warp" or models_dir is None:
        return "mesh"
    from musetalk_pipeline.faces.dwpose import WEIGHTS  # late: that module loads OpenCV

    if importlib.util.find_spec("mmpose") and (models_dir / WEIGHTS).is_file():
        return "mmpose"
    has_onnx = (models_dir / WEIGHTS.with_suffix(".onnx")).is_file()
    return "onnx" if has_onnx and importlib.util.find_spec("onnxruntime") else "mesh"
