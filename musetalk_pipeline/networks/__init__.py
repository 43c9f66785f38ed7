"""The networks of the MuseTalk engine and of the detectors, loaded from the published files."""
