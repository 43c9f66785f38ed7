"""Every choice that a job or a deployment can make, in one place.

Plain frozen dataclasses: serve_app/config/settings.py and serve_app/contract/requests.py validate
what comes from outside and hand these inward. Nothing here is read from the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Version = Literal["v15", "v1"]
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
    """The picture that is asked for.

    `resolution`: `"720p"` (short side), `"640x360"` (literal), None or `"source"` (as it is).
    `aspect_ratio`: `"9:16"` and the like; None or `"source"` keeps the source's. `fit`: a source of
    another shape gets black bars (`pad`), bars that show the picture itself, enlarged and blurred
    (`blur`), or is cut to the shape around the face (`crop`).
    `fps`: frames a second at which the source's frames are played, every one of them; None: as the
    source. The reference's realtime script plays every source at 25.
    """

    resolution: str | None = None
    aspect_ratio: str | None = None
    fit: Fit = "pad"
    fps: float | None = None


@dataclass(frozen=True, slots=True)
class FaceOptions:
    """How the face box is made from landmarks, and when a frame counts as having a face.

    Defaults are those of the reference's `scripts/inference.py` for v1.5. `bbox_shift` acts on v1
    only: v1.5 forces it to 0. `box_smoothing` is the number of neighbouring frames on each side
    that a box is averaged over; 0 is the reference. `faceless`: what becomes of a frame without a
    face that the audio reaches. `pass` shows it as it is, at its own place; `refuse` ends the job.
    `edges`: what becomes of a box over the right or bottom edge of the frame. `clip` cuts it off;
    `stretch` is the reference, which stretches what is visible to the whole box.
    """

    version: Version = "v15"
    bbox_shift: int = 0
    extra_margin: int = 10
    box_smoothing: int = 0
    faceless: Faceless = "pass"
    edges: Edges = "clip"


@dataclass(frozen=True, slots=True)
class MaskOptions:
    """Which pixels the generated face replaces, and how softly.

    `blur`: fraction of the crop width used for the mask's Gaussian kernel; the reference has 0.05
    offline and 0.1 in its realtime script. Cheek widths are pixels of the 512-pixel parse map and
    act in `jaw` mode only.
    """

    parsing_mode: ParsingMode = "jaw"
    left_cheek_width: int = 90
    right_cheek_width: int = 90
    blur: float = 0.05


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
    `chunk_overlap_s`: by how much the chunks of 30 s that Whisper hears overlap; the seam lies in
    the middle. 0 is the reference, where a word across a seam is heard in two halves.
    `frame_rate`: the rate by which frames are counted and follow each other in the sound. `whole`
    is the reference's: cut to an integer, though the video plays at its exact rate, so that lips
    get ahead of the sound, and the file ends before the speech does (by 3.2 % at 29.97).
    """

    audio_padding_left: int = 2
    audio_padding_right: int = 2
    rest_in_silence: bool = False
    window_placement: WindowPlacement = "fixed"
    window_span: WindowSpan = "time"
    chunk_overlap_s: float = 0.0
    frame_rate: FrameRate = "exact"


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """libx264 settings of the one and only video encode (reference: crf 18, preset medium)."""

    crf: int = 18
    preset: Preset = "medium"
    audio_bitrate_kbps: int = 128


@dataclass(frozen=True, slots=True)
class JobOptions:
    """All of one job's choices."""

    frame: FrameOptions = field(default_factory=FrameOptions)
    face: FaceOptions = field(default_factory=FaceOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    encode: EncodeOptions = field(default_factory=EncodeOptions)


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
