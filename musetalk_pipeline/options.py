"""Every choice that a job or a deployment can make, in one place.

Plain frozen dataclasses. Each field carries a `Spec`: its bounds and its help. The command lines
(lipsync/, `python -m musetalk_pipeline`), the request's `params` (serve_app/contract/requests.py)
and the generated tables of the documents are all derived from it, so nothing is written twice.
Nothing here is read from the environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from musetalk_pipeline.face_choice import FaceChoice, read_face
from musetalk_pipeline.option_spec import Option, Spec, options_of
from musetalk_pipeline.time_options import TimeOptions

Version = Literal["v15", "v1"]
Precision = Literal["float32", "float16", "bfloat16"]
ParsingMode = Literal["jaw", "raw", "neck"]
Fit = Literal["pad", "blur", "crop"]
Surround = Literal["black", "blur"]
Edges = Literal["clip", "stretch"]
Faceless = Literal["pass", "refuse"]
FrameRate = Literal["exact", "whole"]
WindowPlacement = Literal["fixed", "reference"]
Speedup = Literal["none", "cuda_graphs", "compile"]
WindowSpan = Literal["time", "frames"]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"]


@dataclass(frozen=True, slots=True)
class FrameOptions:
    """The picture that is requested.

    `resolution`: `"720p"` (short side), `"640x360"` (literal), None or `"source"` (as it is).
    `aspect_ratio`: `"9:16"` and the like; None or `"source"` keeps the source's. `fit`: a source of
    another shape gets black bars (`pad`), bars that show the picture itself, enlarged and blurred
    (`blur`), or is cut to the shape around the face (`crop`).
    `fps`: frames a second at which the source's frames are played, every one of them; None: as the
    source. The reference's realtime script plays every source at 25.
    """

    resolution: Annotated[
        str | None,
        Spec(
            "The size of the result is `720p` (its short side), `640x360` (both sides) or "
            "`source` (that of the video).",
            is_param=False,
            metavar="720p|WxH",
            default_text="source",
        ),
    ] = None
    aspect_ratio: Annotated[
        str | None,
        Spec(
            "The shape of the result is `9:16`, `16:9`, `1:1` and the like, or `source` (that of "
            "the video).",
            is_param=False,
            metavar="W:H",
            default_text="source",
        ),
    ] = None
    fit: Annotated[
        Fit,
        Spec(
            "A video of another shape gets black bars (`pad`) or bars of its own blurred picture "
            "(`blur`), or is cut to the shape around the face (`crop`)."
        ),
    ] = "pad"
    fps: Annotated[
        float | None,
        Spec(
            "The frames of the video are played at this rate instead of the video's own.",
            least=1,
            most=120,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class FaceOptions:
    """How the face box is made from landmarks, and when a frame counts as having a face.

    Defaults are those of the reference's `scripts/inference.py` for v1.5. `bbox_shift` acts on v1
    only: v1.5 forces it to 0. `box_smoothing` is the number of neighbouring frames on each side
    that a box is averaged over; 0 is the reference. `faceless`: what becomes of a frame without a
    face that the audio reaches. `pass` shows it as it is, at its own place; `refuse` ends the job.
    `edges`: what becomes of a box over the right or bottom edge of the frame. `clip` cuts it off;
    `stretch` is the reference, which stretches what is visible to the whole box. `face`: whose
    mouth is redrawn; `largest` is the most prominent one of each frame, as in the reference.
    """

    version: Annotated[
        Version,
        Spec("The version of the MuseTalk model is 1.5 (`v15`) or 1 (`v1`).", is_param=False),
    ] = "v15"
    bbox_shift: Annotated[
        int,
        Spec(
            "The middle line of the face box moves down by this many pixels. Only `v1` uses it.",
            least=-50,
            most=50,
        ),
    ] = 0
    extra_margin: Annotated[
        int,
        Spec(
            "The face box reaches this many pixels below the chin. Only `v15` uses it.",
            least=0,
            most=200,
        ),
    ] = 10
    box_smoothing: Annotated[
        int,
        Spec(
            "The face box is averaged over this many neighbouring frames on each side.",
            least=0,
            most=12,
        ),
    ] = 0
    faceless: Annotated[
        Faceless,
        Spec(
            "Frames without a face are shown as they are (`pass`), or they end the job with the "
            "error `no_face` (`refuse`)."
        ),
    ] = "pass"
    edges: Annotated[
        Edges,
        Spec(
            "A face box that reaches over the edge of the frame is clipped (`clip`), or its "
            "visible part is stretched as in the reference (`stretch`)."
        ),
    ] = "clip"
    face: Annotated[
        FaceChoice,
        Spec(
            "The mouth of the most prominent face of each frame is redrawn (`largest`), or those "
            "of all faces (`all`), or that of the person who is at a point or in a box of one "
            "frame, whom the video is then searched for. Pixels are those of the video as it is "
            "displayed, and frames count from 0.",
            metavar="largest|all|point:X,Y@N|box:X,Y,W,H@N",
            read=read_face,
        ),
    ] = "largest"


@dataclass(frozen=True, slots=True)
class MaskOptions:
    """Which pixels the generated face replaces, and how softly.

    `blur`: fraction of the crop width used for the mask's Gaussian kernel; the reference has 0.05
    offline and 0.1 in its realtime script. Cheek widths are pixels of the 512-pixel parse map and
    act in `jaw` mode only.
    """

    parsing_mode: Annotated[
        ParsingMode,
        Spec(
            "The generated picture replaces the lower face down to the jaw (`jaw`), the lower face "
            "as it is parsed (`raw`), or the lower face and the neck (`neck`).",
            default_text="jaw; raw with v1",
        ),
    ] = "jaw"
    left_cheek_width: Annotated[
        int,
        Spec(
            "The left cheek begins this far from the middle of the face, in pixels of the "
            "512-pixel parse map. Only `jaw` uses it.",
            least=0,
            most=256,
        ),
    ] = 90
    right_cheek_width: Annotated[
        int,
        Spec(
            "The right cheek begins this far from the middle of the face, in pixels of the "
            "512-pixel parse map. Only `jaw` uses it.",
            least=0,
            most=256,
        ),
    ] = 90
    blur: Annotated[
        float,
        Spec(
            "The edge of the mask is blurred over this fraction of the width of the crop.",
            least=0.0,
            most=0.5,
        ),
    ] = 0.05


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """How the audio steers the mouth.

    Paddings are the reference's `audio_padding_length_left/right`, in video frames at 25 fps.
    `rest_in_silence` fades to the source frame where nobody speaks; off is the reference.
    `window_placement`: how long before its frame a window of sound begins. `fixed` is the time the
    network was trained with, whatever the frame rate; `reference` shifts it with the rate, 40 ms
    late at 17 to 24 fps and early from 50 on. From 25 to 49 fps they are the same.
    `window_span`: how much sound a window holds. `time` is the reference's 200 ms at every rate;
    `frames` is five video frames at every rate, two of them before its own, as at 25 fps, which the
    network was trained at; `window_placement` means nothing then.
    `chunk_overlap_s`: by how much the chunks of 30 s that Whisper encodes overlap; the seam lies in
    the middle. 0 is the reference, where a word across a seam is encoded in two halves.
    `frame_rate`: the rate by which frames are counted and follow each other in the sound. `whole`
    is the reference's: cut to an integer, though the video plays at its exact rate, so that lips
    get ahead of the sound, and the file ends before the speech does (by 3.2 % at 29.97).
    """

    audio_padding_left: Annotated[
        int,
        Spec(
            "A window of sound begins this many frames before its own frame, at 25 frames/s.",
            least=0,
            most=10,
        ),
    ] = 2
    audio_padding_right: Annotated[
        int,
        Spec(
            "A window of sound ends this many frames after its own frame, at 25 frames/s.",
            least=0,
            most=10,
        ),
    ] = 2
    rest_in_silence: Annotated[
        bool, Spec("The mouth of the video itself is shown while nobody speaks.")
    ] = False
    window_placement: Annotated[
        WindowPlacement,
        Spec(
            "A window of sound begins when the network was trained to expect it (`fixed`), or as "
            "in the reference, which is late below 25 frames/s (`reference`)."
        ),
    ] = "fixed"
    window_span: Annotated[
        WindowSpan,
        Spec("A window of sound lasts 200 ms (`time`), or five video frames (`frames`)."),
    ] = "time"
    chunk_overlap_s: Annotated[
        float,
        Spec(
            "Whisper encodes the sound in chunks of 30 s, which overlap by this many seconds.",
            least=0,
            most=10,
        ),
    ] = 0.0
    frame_rate: Annotated[
        FrameRate,
        Spec(
            "The frames follow the sound at the exact rate of the video (`exact`), or at that rate "
            "cut to a whole number as in the reference (`whole`)."
        ),
    ] = "exact"


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """libx264 settings of the one and only video encode (reference: crf 18, preset medium)."""

    crf: Annotated[
        int,
        Spec(
            "The H.264 video is encoded with this CRF. A lower value means better quality and a "
            "larger file.",
            least=0,
            most=40,
        ),
    ] = 18
    preset: Annotated[
        Preset,
        Spec("libx264 encodes with this preset. A slower one makes a smaller file."),
    ] = "medium"
    audio_bitrate_kbps: Annotated[
        int,
        Spec("The AAC sound has this many kbit/s.", least=32, most=512, is_param=False),
    ] = 128


@dataclass(frozen=True, slots=True)
class JobOptions:
    """All of one job's choices."""

    frame: FrameOptions = field(default_factory=FrameOptions)
    face: FaceOptions = field(default_factory=FaceOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    time: TimeOptions = field(default_factory=TimeOptions)

    def with_choices(self, chosen: Mapping[str, object]) -> JobOptions:
        """Return these options with the `chosen` ones, by their names, in place of their own.
        Other names are left out.
        """
        parts = {
            part.name: _replaced(getattr(self, part.name), chosen) for part in fields(JobOptions)
        }
        return JobOptions(**parts)


def _replaced(part: Any, chosen: Mapping[str, object]) -> Any:
    known = {each.name for each in fields(part)}
    return replace(part, **{name: chosen[name] for name in chosen if name in known})


def defaults_for(version: Version) -> JobOptions:
    """Return the options of a job that chooses nothing. `v1` parses faces in `raw` mode, as the
    reference does (its chin margin of zero belongs to the crop).
    """
    mask = MaskOptions("raw" if version == "v1" else "jaw")
    return JobOptions(face=FaceOptions(version=version), mask=mask)


def job_options() -> Iterator[Option]:
    """Yield every option of a job, part by part."""
    for kind in JOB_PARTS:
        yield from options_of(kind)


JOB_PARTS = (FrameOptions, FaceOptions, MaskOptions, SpeechOptions, EncodeOptions, TimeOptions)


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What an input may be at most. Checked before any frame is decoded.

    The byte limit is the worker contract's `WORKER_MAX_FILE_MB`; the others are guesses that leave
    room for every clip seen in production.
    """

    max_bytes: int = 2000 * 1024 * 1024
    max_duration_s: float = 3600.0
    max_pixels: int = 4096 * 2304
    max_side_px: int = 8192
    max_fps: float = 120.0
    max_streams: int = 16
    min_bytes: int = 1000
