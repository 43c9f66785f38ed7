"""What old callers send is never a reason to fail a job (mend 1.9)."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.contract.lenient import read_leniently
from serve_app.contract.requests import Params

JOB = {"musetalk_job_id": "a", "video_url": "http://a/v", "audio_url": "http://a/a"}


def read(**fields: Any) -> tuple[str | None, str | None, tuple[str, ...]]:
    request, warnings = read_leniently({**JOB, **fields})
    return request.aspect_ratio, request.resolution, warnings


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", None),
        ("auto", None),
        ("original", None),
        ("portrait", "9:16"),
        ("Landscape", "16:9"),
        ("square", "1:1"),
        ("9x16", "9:16"),
        ("16 / 9", "16:9"),
        ("1.91:1", "191:100"),
        ("9:0", None),
        ("9:160", None),
        ("wide?", None),
        ("x" * 100_000, None),
        ("\ud800", None),
        (1.78, None),
        (["9:16"], None),
        (True, None),
    ],
)
def test_an_aspect_ratio_that_is_not_ours_is_its_meaning_or_the_default(
    given: object, meant: str | None
) -> None:
    """Mend 1.9: and a sentence says so, without repeating more than a few characters."""
    aspect, _, warnings = read(aspect_ratio=given)
    assert aspect == meant
    [warning] = warnings
    assert warning.startswith("aspect_ratio ") and len(warning) < 160
    assert warning.isprintable()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("480", "480p"),
        (720, "720p"),
        ("4k", "2160p"),
        ("HD", "720p"),
        ("full hd", "1080p"),
        ("original", None),
        ("", None),
        ("1920 x 1080", "1920x1080"),
        ("8k", None),
        ("9999x9999", None),
        ("4p", None),
        ("big", None),
        ({"w": 1}, None),
        (float("nan"), None),
    ],
)
def test_a_resolution_that_is_not_ours_is_its_meaning_or_the_default(
    given: object, meant: str | None
) -> None:
    """Mend 1.9: what the limit on pixels forbids is the default."""
    _, resolution, warnings = read(resolution=given)
    assert resolution == meant
    assert len(warnings) == 1 and warnings[0].startswith("resolution ")


@pytest.mark.parametrize("aspect", [None, "9:16", "16:9", " 4:5 ", "source", "1:1"])
@pytest.mark.parametrize("resolution", [None, "720p", "2160p", "512x512", "Source"])
def test_what_is_understood_stays_as_it_came(aspect: str | None, resolution: str | None) -> None:
    assert read(aspect_ratio=aspect, resolution=resolution) == (aspect, resolution, ())


def test_sizes_that_cannot_be_made_together_keep_the_shape() -> None:
    aspect, resolution, warnings = read(aspect_ratio="4:1", resolution="4k")
    assert (aspect, resolution) == ("4:1", None)
    assert "cannot be made" in warnings[-1]


def test_params_that_are_unknown_or_bad_are_left_out_and_named() -> None:
    """Mend 1.9: one bad key does not cost the good ones."""
    params = {"fit": "crop", "crf": 900, "preset": "warp9", "fps": "25", "bbox": 1, "use_fp16": 1}
    request, warnings = read_leniently({**JOB, "params": params})
    assert request.params == Params(fit="crop", fps=25)
    text = " ".join(warnings)
    assert len(warnings) == 3
    assert all(name in text for name in ("`bbox`", "`use_fp16`", "params.crf", "params.preset"))


def test_times_that_do_not_fit_together_are_left_out_and_the_rest_is_used() -> None:
    given = {"crf": 30, "sync_mode": "loop", "video_start_s": 3, "video_end_s": 2}
    request, warnings = read_leniently(JOB | {"params": given})
    assert request.params == Params(crf=30)
    assert warnings == (
        "params: `video_end_s` is 2 and `video_start_s` is 3; the end has to be after the start; "
        "no time in them was used.",
    )


def test_an_upload_that_nobody_checks_is_not_a_sound_of_a_segment_either() -> None:
    audio = {"url": f"upload://{'a' * 32}"}
    params = {"crf": 30, "segments": [{"start_s": 0, "end_s": 1, "audio": audio}]}
    request, warnings = read_leniently(JOB | {"params": params})
    assert request.params == Params(crf=30) and "uploads cannot be used here" in warnings[0]
    request, warnings = read_leniently(JOB | {"params": params}, accepts_uploads=True)
    assert request.addresses[2:] == (audio["url"],) and warnings == ()


@pytest.mark.parametrize("params", ["", "fit=crop", [], 5, True])
def test_params_that_are_no_object_are_ignored(params: object) -> None:
    request, warnings = read_leniently({**JOB, "params": params})
    assert request.params == Params() and len(warnings) == 1


def test_many_unknown_names_make_one_short_sentence() -> None:
    request, warnings = read_leniently({**JOB, "params": {f"k{n}" * 99: n for n in range(5000)}})
    assert request.params == Params()
    assert len(warnings) == 1 and len(warnings[0]) < 500 and "4992 more" in warnings[0]


def test_legacy_size_ignores_both_fields_without_a_word() -> None:
    """Mend 1.9: `LEGACY_SIZE=source`, for callers who fill in 1:1 and 512x512 by habit."""
    job = {**JOB, "aspect_ratio": "1:1", "resolution": "512x512", "params": None}
    request, warnings = read_leniently(job, legacy_size_source=True)
    assert (request.aspect_ratio, request.resolution, warnings) == (None, None, ())


def test_unknown_fields_beside_params_are_ignored_silently() -> None:
    request, warnings = read_leniently({**JOB, "worker_hint": 7, "musetalk_job_id": 12})
    assert request.musetalk_job_id == "12" and warnings == ()


@pytest.mark.parametrize(
    "broken",
    [
        {"musetalk_job_id": None},
        {"musetalk_job_id": ""},
        {"musetalk_job_id": "x" * 257},
        {"musetalk_job_id": True},
        {"video_url": None},
        {"video_url": 5},
        {"audio_url": ""},
        {"audio_url": "http://a/" + "x" * 9000},
    ],
)
def test_an_unusable_id_or_address_is_all_that_fails(broken: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        read_leniently({**JOB, **broken})


def test_numbers_too_long_to_be_written_out_are_no_surprise() -> None:
    assert read(resolution=10**5000)[:2] == (None, None)
    with pytest.raises(ValidationError):
        read_leniently({**JOB, "musetalk_job_id": 10**5000})


def test_an_avatar_may_stand_for_the_video() -> None:
    avatar_id = "0a" * 16
    payload = {"musetalk_job_id": "a", "audio_url": "https://h/a.wav", "avatar_id": avatar_id}
    request, warnings = read_leniently(payload)
    assert (request.avatar_id, request.is_avatar, warnings) == (avatar_id, False, ())
    request, _ = read_leniently({**payload, "video_url": "https://h/v.mp4"})
    assert (request.avatar_id, request.video_url) == (None, "https://h/v.mp4")


@pytest.mark.parametrize(
    "change",
    [
        *({"avatar_id": value} for value in ("../../etc", "0A" * 16, 7, "", None)),
        {"video_url": "avatar:" + "0a" * 16},
        {"video_url": "https://h/v.mp4", "audio_url": "silence:3"},
    ],
)
def test_what_stands_for_something_inside_is_not_taken_from_outside(
    change: dict[str, object],
) -> None:
    payload = {"musetalk_job_id": "a", "audio_url": "https://h/a.wav", **change}
    with pytest.raises(ValidationError):
        read_leniently(payload)
