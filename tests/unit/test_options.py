"""Every choice of a job can be made per request, for a deployment and on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import pytest

from musetalk_pipeline.__main__ import _options, _parser
from musetalk_pipeline.options import JobOptions, defaults_for, job_options
from serve_app.config.settings import AppArgs
from serve_app.contract.requests import JobRequest, Params

REQUEST = {"musetalk_job_id": "a", "video_url": "http://a/v", "audio_url": "http://a/a"}
POOLS = [{"name": "cpu"}]
# A field beside `params` in a request, a deployment's own, or no choice of a request.
NOT_PARAMS = {"resolution", "aspect_ratio", "version", "audio_bitrate_kbps"}

CHOSEN: dict[str, Any] = {
    "fit": "crop",
    "fps": 25.0,
    "crf": 30,
    "preset": "slow",
    "parsing_mode": "neck",
    "extra_margin": 20,
    "bbox_shift": 7,
    "left_cheek_width": 80,
    "right_cheek_width": 70,
    "blur": 0.1,
    "audio_padding_left": 3,
    "audio_padding_right": 1,
    "window_placement": "reference",
    "window_span": "frames",
    "chunk_overlap_s": 2.0,
    "frame_rate": "whole",
    "rest_in_silence": True,
    "box_smoothing": 2,
    "faceless": "refuse",
    "edges": "stretch",
    "sync_mode": "loop",
    "video_start_s": 1.5,
    "video_end_s": 9.25,
    "audio_start_s": 0.5,
    "audio_end_s": 8.0,
    "segments": (
        {"start_s": 2.0, "end_s": 4.0, "audio": {"url": "a.wav", "start_s": 1.0, "end_s": None}},
        {"start_s": 5.0, "end_s": 6.0, "audio": None},
    ),
    "face": "all",
}


def values(options: JobOptions) -> dict[str, Any]:
    parts = [getattr(options, part.name) for part in fields(JobOptions)]
    return {name: value for part in parts for name, value in asdict(part).items()}


def command_line(*arguments: str) -> JobOptions:
    return _options(_parser().parse_args(["v.mp4", "a.wav", *arguments]))


def test_every_option_is_listed_here() -> None:
    assert CHOSEN.keys() == values(JobOptions()).keys() - NOT_PARAMS


@pytest.mark.parametrize("name", CHOSEN)
def test_an_option_is_reached_from_everywhere(name: str) -> None:
    expected = values(JobOptions()) | {name: CHOSEN[name]}
    assert expected != values(JobOptions())
    request = JobRequest.model_validate(REQUEST | {"params": {name: CHOSEN[name]}})
    assert values(request.options(JobOptions())) == expected
    deployment = AppArgs(pools=POOLS, defaults={name: CHOSEN[name]})  # type: ignore[arg-type]
    assert values(deployment.job_defaults()) == expected
    flag = f"--{name.replace('_', '-')}"
    word = json.dumps(CHOSEN[name]) if name == "segments" else str(CHOSEN[name])
    words = [flag] if CHOSEN[name] is True else [flag, word]
    assert values(command_line(*words)) == expected


def test_a_command_line_without_options_is_the_default() -> None:
    assert command_line() == JobOptions()


def test_requests_and_command_line_say_the_same_of_an_option() -> None:
    properties = Params.model_json_schema()["properties"]
    assert list(properties) == [one.name for one in job_options() if one.spec.is_param]
    for option in job_options():
        if not option.spec.is_param:
            continue
        field = properties[option.name]
        assert field["description"] == option.spec.help
        [value, *others, nothing] = field["anyOf"]
        assert nothing == {"type": "null"} and bool(others) == (option.name == "face")
        assert others or tuple(value.get("enum", ())) == option.choices
        bounds = value.get("minimum"), value.get("maximum")
        assert bounds == (option.spec.least, option.spec.most)


def test_v1_parses_in_raw_mode_unless_another_is_chosen() -> None:
    assert defaults_for("v1").mask.parsing_mode == "raw"
    assert command_line("--version", "v1").mask.parsing_mode == "raw"
    chosen = command_line("--version", "v1", "--parsing-mode", "jaw")
    assert (chosen.face.version, chosen.mask.parsing_mode) == ("v1", "jaw")
