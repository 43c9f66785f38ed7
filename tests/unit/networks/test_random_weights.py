"""Random weights for measuring: the engine loads them as it loads the published ones."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from musetalk_pipeline.engines import decide_engine, make_audio_encoder
from musetalk_pipeline.engines.musetalk.engine import MuseTalkEngine
from tests.unit.networks.test_musetalk_engine import draw

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def test_small_random_weights_draw_faces_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    random_weights = importlib.import_module("random_weights")
    random_weights.main([str(tmp_path), "--size", "small", "--device", "cpu"])
    assert decide_engine("auto", tmp_path).engine == "musetalk"
    make_audio_encoder("musetalk", tmp_path)
    engine = MuseTalkEngine(tmp_path)
    faces = draw(engine, "xx")
    assert faces.shape == (2, 256, 256, 3)
    assert faces.std() > 10 and np.any(faces[0] != faces[1])
    assert engine.counters.float32_redos == 0
