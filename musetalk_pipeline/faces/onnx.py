"""DWPose through onnxruntime: the same network as `mmpose`, without the mm stack, faster on a CPU.

    python -m musetalk_pipeline.faces.onnx export dw-ll_ucoco_384.pth dw-ll_ucoco_384.onnx

makes the file from the published weights and checks it against them. Only the export needs the mm
stack and torch; the detector needs onnxruntime alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.faces.dwpose import (
    HEIGHT,
    WEIGHTS,
    WIDTH,
    X_BINS,
    Y_BINS,
    DwposeDetector,
    Float,
)

MODEL = WEIGHTS.with_suffix(".onnx")  # in the models folder
OPSET = 17
OUTPUTS = ("simcc_x", "simcc_y")  # names as in the ONNX file that DWPose's authors publish
# Relative to the largest value; 2e-6 was measured with random weights. Half a thousandth of a peak
# does not move a point by a bin unless two bins tie.
EXPORT_TOLERANCE = 5e-4


class OnnxDetector(DwposeDetector):
    """DWPose by onnxruntime on `threads` CPU threads. `faces`: finds the person, see
    DwposeDetector.
    """

    def __init__(self, path: Path, threads: int = 1, faces: LandmarkDetector | None = None) -> None:
        self._session = _open_session(path, threads)
        self._input = self._session.get_inputs()[0].name
        super().__init__("onnx", self._run, faces)

    def _run(self, inputs: Float) -> tuple[Float, Float]:
        over_x, over_y = self._session.run(list(OUTPUTS), {self._input: inputs})
        return over_x, over_y


def export(weights: Path, target: Path) -> None:
    """Write the network of a DWPose checkpoint as ONNX; the number of frames stays free.

    The file appears under its name only after onnxruntime has run it and agrees with torch.

    Raises:
        ModelLoadFailed: the checkpoint is unfit, the mm stack is missing, or the two disagree.
    """
    import torch

    from musetalk_pipeline.faces.mmpose import load_rtmpose

    network = load_rtmpose(weights)
    picture = torch.randn(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        exported = Path(scratch, target.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the TorchScript exporter warns that it is deprecated
            # dynamo=False, because the newer exporter needs onnxscript, and the old one can express
            # all of this network.
            torch.onnx.export(
                network,
                (picture,),
                exported,
                input_names=["input"],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "frames"} for name in ("input", *OUTPUTS)},
                opset_version=OPSET,
                dynamo=False,
            )
            with torch.inference_mode():
                wanted = [part.numpy() for part in network(picture)]
        _check_agreement(OnnxDetector(exported), picture.numpy(), wanted)
        os.replace(exported, target)


def _check_agreement(detector: OnnxDetector, picture: Float, wanted: list[Float]) -> None:
    for name, found, expected in zip(OUTPUTS, detector._run(picture), wanted, strict=True):
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not error <= EXPORT_TOLERANCE:
            raise ModelLoadFailed(
                f"The exported network differs from the original by {error:.1e} of the largest "
                f"value in {name}; at most {EXPORT_TOLERANCE:.0e} is allowed. Nothing was written."
            )


def _open_session(path: Path, threads: int) -> Any:
    # onnxruntime 1.31 sends telemetry as soon as it is imported, unless this is set before.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as exc:
        raise ModelLoadFailed(
            "The landmark detector `onnx` needs onnxruntime: `pip install onnxruntime`."
        ) from exc
    if not path.is_file():
        raise ModelLoadFailed(
            f"{path} does not exist. Make it from the published weights with `python -m "
            f"musetalk_pipeline.faces.onnx export {path.with_suffix('.pth')} {path}`.",
            file=str(path),
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime has one class per status, none of them public
        raise ModelLoadFailed(
            f"{path} is not an ONNX file that onnxruntime can run. Export it again.", file=str(path)
        ) from exc
    _check_shapes(session, path)
    return session


def _check_shapes(session: Any, path: Path) -> None:
    """Refuse any network but DWPose 384x288 with a free number of frames."""
    inputs = [node.shape for node in session.get_inputs()]
    # In exported graphs the number of points is not a constant, but the bins are.
    outputs = {node.name: node.shape[-1] for node in session.get_outputs()}
    wanted = dict(zip(OUTPUTS, (X_BINS, Y_BINS), strict=True))
    is_free = len(inputs) == 1 and not isinstance(inputs[0][0], int)
    if is_free and inputs[0][1:] == [3, HEIGHT, WIDTH] and outputs == wanted:
        return
    raise ModelLoadFailed(
        f"{path} is not DWPose 384x288 with a free number of frames (inputs {inputs}, outputs "
        f"{outputs}): export it with `python -m musetalk_pipeline.faces.onnx export`.",
        file=str(path),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code: 0 written, 1 failed."""
    parser = argparse.ArgumentParser(
        prog="python -m musetalk_pipeline.faces.onnx", description="Export DWPose to ONNX."
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("export", help="write the ONNX file of a DWPose checkpoint")
    command.add_argument("weights", type=Path, metavar="IN.pth")
    command.add_argument("target", type=Path, metavar="OUT.onnx")
    options = parser.parse_args(arguments)
    try:
        export(options.weights, options.target)
    except (ModelLoadFailed, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    print(f"{options.target}: {options.target.stat().st_size} bytes, checked with onnxruntime")
    return 0


if __name__ == "__main__":
    sys.exit(main())
