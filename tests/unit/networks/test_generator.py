"""The Generator's class without Ray: it exists only once a tiny generation has come out."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from musetalk_pipeline.errors import StageFailed
from serve_app.config.settings import AppArgs, PoolSettings
from serve_app.graph.generator import Generator
from serve_app.telemetry.logs import PACKAGES


@pytest.fixture(autouse=True)
def the_logs_and_environment_of_a_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A replica sets up the logs of its process, and reads its environment."""
    for name in ("MUSETALK_UNET_MODEL_PATH", "MUSETALK_UNET_CONFIG", "BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)
    loggers = [logging.getLogger(name) for name in (*PACKAGES, "httpx", "httpcore", "b2sdk")]
    before = [(list(each.handlers), each.level, each.propagate) for each in loggers]
    yield
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


def generator(models: Path) -> Generator:
    pool = PoolSettings(name="cpu")
    args = AppArgs(engine="musetalk", landmarks="mesh", models_dir=models, pools=[pool])
    return Generator(args, pool)


def test_a_replica_is_ready_when_one_tiny_generation_has_come_out(models: Path) -> None:
    replica = generator(models)
    counters = replica._engine.counters  # type: ignore[attr-defined]
    assert counters.batches == counters.frames == 4  # encoder, parser, UNet, decoder
    assert asyncio.run(replica.preflight()) == {"engine": "ok"}
    assert counters.batches == 8


def test_a_replica_that_loads_but_cannot_draw_is_never_ready(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    file = folder / "musetalkV15" / "unet.pth"
    tensors = torch.load(file, weights_only=True)
    torch.save({key: torch.full_like(tensor, torch.nan) for key, tensor in tensors.items()}, file)
    with pytest.raises(StageFailed, match="UNet"):
        generator(folder)
