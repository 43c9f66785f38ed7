"""The command line's arguments: what they become, and which are refused before any work."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from musetalk_pipeline.__main__ import _load, _options, _parser, main
from musetalk_pipeline.options import (
    EncodeOptions,
    FaceOptions,
    FrameOptions,
    JobOptions,
    MaskOptions,
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resolution", "640x360"], {"frame": FrameOptions(resolution="640x360")}),
        (["--aspect-ratio", "9:16"], {"frame": FrameOptions(aspect_ratio="9:16")}),
        (["--audio-bitrate-kbps", "96"], {"encode": EncodeOptions(audio_bitrate_kbps=96)}),
        (["--version", "v1"], {"face": FaceOptions("v1"), "mask": MaskOptions("raw")}),
    ],
)
def test_a_flag_becomes_its_option(words: list[str], expected: dict[str, object]) -> None:
    args = _parser().parse_args(["v.mp4", "a.wav", *words])
    assert _options(args) == replace(JobOptions(), **expected)


@pytest.mark.parametrize(("flag", "most"), [("--batch-size", 256), ("--encoder-threads", 64)])
@pytest.mark.parametrize("value", ["-1", "0", "257", "4.5", "many"])
def test_a_count_out_of_bounds_is_refused(
    flag: str, most: int, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["v.mp4", "a.wav", "-o", "o.mp4", flag, value])
    assert stop.value.code == 2
    assert f"argument {flag}: 1 to {most} are accepted, not '{value}'" in capsys.readouterr().err


def test_encoder_threads_are_those_asked_for_or_the_cores() -> None:
    words = ["v.mp4", "a.wav", "--engine", "warp"]
    cores = len(os.sched_getaffinity(0))
    assert _load(_parser().parse_args(words)).encoder_threads == min(cores, 64)
    asked = _parser().parse_args([*words, "--encoder-threads", "1"])
    assert _load(asked).encoder_threads == 1
