"""Finding faces: landmark detectors behind one interface, chosen once by `make_detector`."""

from musetalk_pipeline.faces.detector import LandmarkDetector, Landmarks

__all__ = ["LandmarkDetector", "Landmarks"]
