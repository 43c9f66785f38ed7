"""Finding faces: landmark detectors behind one interface, chosen once by `make_detector`.

It is light to import: the libraries of a detector are loaded when it is made.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces.choice import DetectorName, best_landmarks
from musetalk_pipeline.faces.detector import LandmarkDetector, Landmarks
from musetalk_pipeline.faces.presence import INTERVAL_FRAMES, ByS3fd, ByScore

if TYPE_CHECKING:
    from musetalk_pipeline.faces.mesh import MeshDetector

__all__ = [
    "DetectorName",
    "LandmarkDetector",
    "Landmarks",
    "PersonBox",
    "Presence",
    "best_landmarks",
    "make_detector",
    "shared_mesh",
]

Presence = Literal["landmarks", "s3fd"]
PersonBox = Literal["frame", "face"]


def make_detector(
    name: DetectorName,
    models_dir: Path | None = None,
    *,
    presence: Presence = "landmarks",
    presence_interval: int = INTERVAL_FRAMES,
    person_box: PersonBox = "frame",
    threads: int = 1,
    device: str = "cpu",
) -> LandmarkDetector:
    """Load the detector `name` and the rule by which a frame has a face (see `presence`).

    `models_dir`: the folder with `dwpose/` and `s3fd/`; `mesh` with `landmarks` needs none.
    `presence_interval`: frames from one that S3FD searches to the next. `person_box`: where `onnx`
    and `mmpose` search for a person: in the whole `frame`, as the reference does, or around the
    largest `face` that `mesh` finds, so that small faces are found. `threads`: of `onnx` on the
    CPU. `device`: of `mmpose` and S3FD, as torch names it.

    Raises:
        ModelLoadFailed: a file or package is missing; the message names the command that helps.
    """
    faces = shared_mesh() if person_box == "face" and name != "mesh" else None
    detector = _load_detector(name, models_dir, threads, device, faces)
    if presence == "s3fd":
        from musetalk_pipeline.networks.s3fd import FILE, FaceFinder

        finder = FaceFinder.load(_models(models_dir, "S3FD") / FILE, device)
        return ByS3fd(detector, finder, presence_interval)
    # The mesh network decides by its own threshold whether there is a face.
    return detector if name == "mesh" else ByScore(detector)


@cache
def shared_mesh() -> MeshDetector:
    """Return this process's `mesh` detector, loaded once; any number of threads may use it.

    Raises:
        ModelLoadFailed: its networks are not installed.
    """
    from musetalk_pipeline.faces.mesh import MeshDetector

    return MeshDetector()


def _load_detector(
    name: DetectorName,
    models_dir: Path | None,
    threads: int,
    device: str,
    faces: LandmarkDetector | None,
) -> LandmarkDetector:
    if name == "mesh":
        return shared_mesh()
    if name == "onnx":
        from musetalk_pipeline.faces.onnx import MODEL, OnnxDetector

        return OnnxDetector(_models(models_dir, name) / MODEL, threads, faces)
    if name == "mmpose":
        from musetalk_pipeline.faces.dwpose import WEIGHTS
        from musetalk_pipeline.faces.mmpose import MmposeDetector

        return MmposeDetector(_models(models_dir, name) / WEIGHTS, device, faces)
    raise ValueError(f"unknown landmark detector {name!r}; choose mesh, onnx or mmpose")


def _models(models_dir: Path | None, wanted_by: str) -> Path:
    if models_dir is None:
        raise ModelLoadFailed(
            f"{wanted_by} needs downloaded weights, but no models folder was given. Fetch them "
            "with `lipsync weights fetch --models DIR` and name that folder."
        )
    return models_dir
