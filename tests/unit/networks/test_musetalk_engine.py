"""The MuseTalk engine on small networks: what it gives for blocks and segments, come what may."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from musetalk_pipeline.__main__ import _load, _parser
from musetalk_pipeline.artifacts import AvatarBlock, Face, PreparedBlock, Speech
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.engines.musetalk.engine import MuseTalkEngine, MuseTalkOptions
from musetalk_pipeline.errors import JobCancelled, ModelLoadFailed, OutOfGpuMemory
from musetalk_pipeline.networks.vae import FaceDecoder, seeded_noise
from musetalk_pipeline.options import MaskOptions, Precision, SpeechOptions
from musetalk_pipeline.plan import Block, Segment
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs, PoolSettings
from serve_app.graph.builders import build_engine

FACE = Face(np.zeros((68, 2), np.float32), Box(0, 0, 100, 100), 1.0)


@pytest.fixture(scope="module")
def engine(models: Path) -> MuseTalkEngine:
    """One engine in float32 for tests that do not change it."""
    return MuseTalkEngine(models)


def prepared(faces: str, start: int = 0) -> PreparedBlock:
    """Return a block with a face at every "x" of `faces`."""
    count = faces.count("x")
    random = np.random.default_rng(start)
    return PreparedBlock(
        block=Block(0, start, start + len(faces)),
        faces=tuple(FACE if face == "x" else None for face in faces),
        crops=random.integers(0, 256, (count, 256, 256, 3), dtype=np.uint8),
        parse_inputs=random.integers(0, 256, (count, 512, 512, 3), dtype=np.uint8),
    )


def avatar(faces: str) -> AvatarBlock:
    """Return an encoded block without having encoded it."""
    count = faces.count("x")
    return AvatarBlock(
        block=Block(0, 0, len(faces)),
        faces=tuple(FACE if face == "x" else None for face in faces),
        appearance=np.random.default_rng(1).standard_normal((count, 8, 32, 32)).astype(np.float32),
        masks=np.zeros((count, 32768), np.uint8),
    )


def speech(count: int) -> Speech:
    """Return random windows; nobody speaks in the first frame."""
    features = np.random.default_rng(2).standard_normal((count, 50, 384)).astype(np.float32)
    return Speech(features, np.linspace(0, 1, count, dtype=np.float32))


def segment(count: int, *, backwards: bool = False) -> Segment:
    """Return a segment over the first `count` source frames."""
    return Segment(0, 0, count, 0, count - 1 if backwards else 0, -1 if backwards else 1)


def draw(engine: MuseTalkEngine, faces: str) -> NDArray[np.uint8]:
    """Return the faces of one segment over a whole block."""
    count = len(faces)
    drawn = engine.generate(avatar(faces), speech(count), segment(count), SpeechOptions())
    return drawn.faces


def worst(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> int:
    """Return the largest difference in levels."""
    return int(np.abs(left.astype(int) - right).max())


def test_warm_up_sends_a_frame_through_every_network(models: Path) -> None:
    engine = MuseTalkEngine(models, MuseTalkOptions(version="v1"))
    engine.warm_up()
    assert engine.counters.batches == 4
    assert (engine.name, engine.model_version) == ("musetalk", "v1")
    assert engine.peak_memory_mib() is None
    assert engine.held_memory_mib() is None


def test_encode_gives_one_row_for_each_frame_with_a_face(engine: MuseTalkEngine) -> None:
    block = engine.encode(prepared("x-xx"), MaskOptions())
    assert block.appearance.shape == (3, 8, 32, 32)
    assert block.appearance.dtype == np.float32
    assert block.masks.shape == (3, 32768)
    assert [list(rows) for rows in block.rows(segment(4))] == [[0], [], [1], [2]]


def test_the_upper_half_of_the_masked_latents_is_that_of_the_whole_face(
    engine: MuseTalkEngine,
) -> None:
    look = engine.encode(prepared("x"), MaskOptions()).appearance
    masked, whole = look[0, :4], look[0, 4:]
    # Convolutions mix across the mask's edge, and the middle's attention everywhere, but little.
    assert (
        np.abs(masked[:, :8] - whole[:, :8]).mean() < np.abs(masked[:, 24:] - whole[:, 24:]).mean()
    )


def test_a_block_without_any_face_passes(engine: MuseTalkEngine) -> None:
    block = engine.encode(prepared("---"), MaskOptions())
    drawn = engine.generate(block, speech(3), segment(3), SpeechOptions())
    assert drawn.faces.shape == (0, 256, 256, 3)
    assert drawn.weights.shape == (0,)


def test_frames_without_a_face_do_not_shift_the_others(engine: MuseTalkEngine) -> None:
    everyone = draw(engine, "xxxx")
    sparse = avatar("x-xx")
    full = avatar("xxxx")
    some = AvatarBlock(sparse.block, sparse.faces, full.appearance[[0, 2, 3]], sparse.masks)
    drawn = engine.generate(some, speech(4), segment(4), SpeechOptions())
    assert worst(drawn.faces, everyone[[0, 2, 3]]) <= 1


def test_backwards_segments_show_the_frames_in_reverse(engine: MuseTalkEngine) -> None:
    silent = Speech(np.zeros((3, 50, 384), np.float32), np.zeros(3, np.float32))
    there = engine.generate(avatar("xxx"), silent, segment(3), SpeechOptions())
    back = engine.generate(avatar("xxx"), silent, segment(3, backwards=True), SpeechOptions())
    assert worst(there.faces, back.faces[::-1]) <= 1


def test_batch_size_does_not_change_the_picture(models: Path, engine: MuseTalkEngine) -> None:
    single = MuseTalkEngine(models, MuseTalkOptions(batch_size=1))
    assert worst(draw(engine, "xxxxxxx"), draw(single, "xxxxxxx")) <= 1


def test_arrays_from_other_processes_may_be_read_only(engine: MuseTalkEngine) -> None:
    block = prepared("xx")
    for array in (block.crops, block.parse_inputs):
        array.flags.writeable = False
    encoded = engine.encode(block, MaskOptions())  # a warning would fail the test
    encoded.appearance.flags.writeable = False
    assert len(engine.generate(encoded, speech(2), segment(2), SpeechOptions()).faces) == 2


def test_the_mouth_rests_in_silence_only_if_asked(engine: MuseTalkEngine) -> None:
    spoken = speech(3)
    always = engine.generate(avatar("xxx"), spoken, segment(3), SpeechOptions())
    resting = engine.generate(
        avatar("xxx"), spoken, segment(3), SpeechOptions(rest_in_silence=True)
    )
    assert always.weights.tolist() == [1, 1, 1]
    assert resting.weights.tolist() == [0, 0.5, 1]
    # The first frame would not show its face, which is therefore not drawn.
    assert len(resting.faces) == 2
    assert worst(always.faces[1:], resting.faces) <= 1


def test_parsing_mode_decides_the_mask(engine: MuseTalkEngine) -> None:
    block = prepared("x")
    raw = engine.encode(block, MaskOptions("raw")).masks
    neck = engine.encode(block, MaskOptions("neck")).masks
    assert np.array_equal(neck | raw, neck)  # neck adds a class to raw
    assert not np.array_equal(raw, neck)


def test_sampled_latents_depend_on_seed_and_frame_alone(models: Path) -> None:
    whole = MuseTalkEngine(models, MuseTalkOptions(seed=5)).encode(
        prepared("xxx", 4), MaskOptions()
    )
    again = MuseTalkEngine(models, MuseTalkOptions(seed=5, batch_size=2)).encode(
        prepared("xxx", 4), MaskOptions()
    )
    other = MuseTalkEngine(models, MuseTalkOptions(seed=6)).encode(
        prepared("xxx", 4), MaskOptions()
    )
    assert np.abs(whole.appearance - again.appearance).max() < 2e-5
    assert np.abs(whole.appearance - other.appearance).max() > 1e-3


def test_the_seed_is_set_for_a_deployment_and_on_the_command_line(models: Path) -> None:
    args = AppArgs(engine="musetalk", models_dir=models, pools=[PoolSettings(name="cpu")], seed=5)
    words = ["v.mp4", "a.wav", "--engine", "musetalk", "--models", str(models), "--seed", "6"]
    deployed = build_engine(args, args.pools[0], read_environment({}))
    typed = _load(_parser().parse_args(words)).engine
    assert isinstance(deployed, MuseTalkEngine) and isinstance(typed, MuseTalkEngine)
    assert (deployed.options.seed, typed.options.seed) == (5, 6)


def test_seeded_noise_is_the_sequence_that_single_encodes_draw() -> None:
    torch.manual_seed(20)
    frames = [torch.stack([torch.randn(1, 4, 32, 32)[0] for _ in range(2)]) for _ in range(300)]
    assert torch.equal(seeded_noise(20, 0, 3), torch.stack(frames[:3]))
    assert torch.equal(seeded_noise(20, 297, 3), torch.stack(frames[297:]))


@pytest.mark.parametrize(("precision", "mean_bound"), [("float16", 2.0), ("bfloat16", 6.0)])
def test_half_precision_stays_near_float32(
    models: Path, engine: MuseTalkEngine, precision: Precision, mean_bound: float
) -> None:
    half = MuseTalkEngine(models, MuseTalkOptions(precision=precision))
    drawn, exact = draw(half, "xxx"), draw(engine, "xxx")
    difference = np.abs(drawn.astype(int) - exact)
    assert 0 < difference.mean() < mean_bound
    assert half.counters.float32_redos == 0


def test_overflow_in_half_precision_is_drawn_in_float32(
    models: Path, engine: MuseTalkEngine
) -> None:
    half = MuseTalkEngine(models, MuseTalkOptions(precision="float16"))
    loud = speech(3)
    loud.features[1] = 1e6  # beyond float16, as activations of some faces are
    drawn = half.generate(avatar("xxx"), loud, segment(3), SpeechOptions())
    exact = engine.generate(avatar("xxx"), loud, segment(3), SpeechOptions())
    assert half.counters.float32_redos == 1
    assert np.abs(drawn.faces.astype(int) - exact.faces).mean() < 2.0


def test_out_of_memory_in_a_network_halves_the_batch_and_finishes(
    models: Path, engine: MuseTalkEngine
) -> None:
    limited = MuseTalkEngine(models, MuseTalkOptions(batch_size=8))
    with fits_at_most(2):
        drawn = draw(limited, "xxxxx")
    assert limited.counters.batch_halvings == 2
    assert limited.batch_size == 2
    assert worst(drawn, draw(engine, "xxxxx")) <= 1


def test_out_of_memory_with_one_frame_is_reported(models: Path) -> None:
    limited = MuseTalkEngine(models)
    with fits_at_most(0), pytest.raises(OutOfGpuMemory, match="VAE decoder"):
        draw(limited, "x")


@contextmanager
def fits_at_most(frames: int) -> Iterator[None]:
    """Let the allocator fail when more frames than these go through the real decoder."""

    def allocate(network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(network, FaceDecoder) and len(arguments[0]) > frames:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with register_module_forward_pre_hook(allocate):
        yield


def test_a_cancelled_call_ends_between_batches(models: Path) -> None:
    engine = MuseTalkEngine(models, MuseTalkOptions(batch_size=1))
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise JobCancelled("Nobody waits for this any more.")

    with pytest.raises(JobCancelled):
        engine.generate(avatar("xxxxxx"), speech(6), segment(6), SpeechOptions(), check)
    assert engine.counters.batches == 2
    asked = 0
    with pytest.raises(JobCancelled):
        engine.encode(prepared("xxxxxx"), MaskOptions(), check)
    assert engine.counters.batches == 4
    assert len(draw(engine, "xx")) == 2  # and it is free for the next


def test_threads_may_share_an_engine(engine: MuseTalkEngine) -> None:
    with ThreadPoolExecutor(3) as threads:
        drawn = list(threads.map(lambda faces: draw(engine, faces), ["xx", "xxx", "xx"]))
    assert np.array_equal(drawn[0], drawn[2])
    assert np.array_equal(drawn[1], draw(engine, "xxx"))


def test_the_two_versions_have_their_own_unet(models: Path, engine: MuseTalkEngine) -> None:
    older = MuseTalkEngine(models, MuseTalkOptions(version="v1"))
    assert worst(draw(engine, "x"), draw(older, "x")) > 1


@pytest.mark.parametrize(
    ("own", "missing"),
    [
        ({"unet_weights": "pytorch_model.bin"}, "unet.pth"),
        ({"unet_config": "musetalk.json"}, "musetalk.json"),
    ],
)
def test_a_unet_file_can_be_named_without_the_published_one(
    models: Path, tmp_path: Path, own: dict[str, str], missing: str
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder, copy_function=os.link)
    (folder / "musetalkV15" / missing).unlink()
    with pytest.raises(ModelLoadFailed, match=missing):
        MuseTalkEngine(folder)
    [(option, name)] = own.items()
    named = MuseTalkEngine(folder, MuseTalkOptions(**{option: models / "musetalk" / name}))
    # The configurations are alike, the weights are not.
    version = "v1" if option == "unet_weights" else "v15"
    published = MuseTalkEngine(models, MuseTalkOptions(version=version))
    assert np.array_equal(draw(named, "x"), draw(published, "x"))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="musetalkV15"):
        MuseTalkEngine(tmp_path)


def test_load_time_and_memory_are_logged(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="musetalk_pipeline"):
        MuseTalkEngine(models)
    loaded = {
        record.network: vars(record) for record in caplog.records if "network" in vars(record)
    }
    assert loaded.keys() == {"UNet2DConditionModel", "AutoencoderKL", "BiSeNet"}
    unet = loaded["UNet2DConditionModel"]
    file = models / "musetalkV15" / "unet.pth"
    tensors = torch.load(file, weights_only=True).values()
    assert unet["file"] == str(file)
    assert unet["parameters"] == sum(tensor.numel() for tensor in tensors)
    assert unet["mib"] == pytest.approx(4 * unet["parameters"] / 2**20, abs=0.05)
    [engine] = [vars(record) for record in caplog.records if record.msg == "engine loaded"]
    assert engine["gpu_mib"] is None
    assert engine["elapsed_s"] >= sum(each["elapsed_s"] for each in loaded.values()) - 0.01 > -0.01
