"""Draw the pictures of docs/options.md: what the options of a job's times do.

    .venv/bin/python scripts/options_pictures.py

Every frame that they show comes from the plan that a job would have, so they cannot differ from it.
"""

from __future__ import annotations

import colorsys
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))

from musetalk_pipeline.artifacts import ColourTags, SourceVideo, SpeechAudio  # noqa: E402
from musetalk_pipeline.options import JobOptions  # noqa: E402
from musetalk_pipeline.plan import SAMPLE_RATE, plan_order  # noqa: E402
from musetalk_pipeline.time_options import SyncMode  # noqa: E402
from musetalk_pipeline.timeline import Sounds, lay_out  # noqa: E402
from musetalk_pipeline.video_spans import SpanAudio, VideoSpan  # noqa: E402

FPS = Fraction(1)  # one frame a second, so that frames can be counted
CELL, GAP, ROW, LABEL = 30, 3, 62, 96  # pixels
Colour = tuple[int, int, int]
PAPER, INK = (255, 255, 255), (40, 44, 52)
SOUND, OWN, QUIET = (47, 111, 235), (60, 170, 110), (214, 218, 226)
MODES: tuple[SyncMode, ...] = ("bounce", "loop", "cut_off", "silence", "remap")


@dataclass(frozen=True)
class Strip:
    """A row of a picture: the numbers of its frames, None for no picture, the colours of their
    sound, and which of them are framed.
    """

    label: str
    frames: list[int | None]
    heard: list[Colour]
    marked: Sequence[int] = ()


def made(mode: SyncMode, frames: int, seconds: int) -> Strip:
    """Return what a job makes of so many frames and seconds of sound."""
    options = JobOptions().with_choices({"sync_mode": mode})
    laid = lay_out(source_of(frames), Sounds(sound_of(seconds)), options)
    segments = plan_order(laid.order, FPS, block_s=100).segments
    shown = [frame for segment in segments for frame in segment.source_frames()]
    return Strip(mode, [*shown], loud(seconds, len(shown)))


def source_of(frames: int) -> SourceVideo:
    """Return a video of so many frames."""
    return SourceVideo(Path("v"), "", 0, 64, 64, FPS, frames, float(frames), ColourTags())


def sound_of(seconds: int) -> SpeechAudio:
    """Return a sound of so many seconds."""
    return SpeechAudio(Path("p"), Path("t"), "", 0, seconds * SAMPLE_RATE, float(seconds))


def loud(seconds: int, frames: int) -> list[Colour]:
    """Return the colours of the sound under each frame."""
    return [SOUND if k < seconds else QUIET for k in range(frames)]


def draw(strips: list[Strip], frames: int, title: str) -> Image.Image:
    """Draw strips below each other. `frames`: of the source; their colours run once around."""
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    cells = max(len(strip.frames) for strip in strips) * (CELL + GAP)
    width = 12 + max(LABEL + cells, 12 + round(font.getlength(title)))
    picture = Image.new("RGB", (width, 34 + len(strips) * ROW), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((12, 8), title, INK, font)
    for row, strip in enumerate(strips):
        top = 34 + row * ROW
        pen.text((12, top + 7), strip.label, INK, font)
        for column, (frame, sound) in enumerate(zip(strip.frames, strip.heard, strict=True)):
            left = LABEL + column * (CELL + GAP)
            if frame is not None:
                box = (left, top, left + CELL, top + CELL)
                edge, wide = (INK, 3) if column in strip.marked else (None, 0)
                pen.rounded_rectangle(box, 5, colour_of(frame, frames), edge, wide)
                pen.text((left + 15, top + 15), str(frame + 1), INK, small, anchor="mm")
            line = (left, top + CELL + 5, left + CELL + GAP - 1, top + CELL + 12)
            pen.rectangle(line, sound)
    return picture


def colour_of(frame: int, frames: int) -> Colour:
    """Return a light colour of its own for each frame."""
    red, green, blue = colorsys.hls_to_rgb(0.05 + 0.75 * frame / frames, 0.78, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return two pictures in one."""
    both = Image.new("RGB", (left.width + 24 + right.width, max(left.height, right.height)), PAPER)
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 24, 0))
    return both


def sync_modes() -> Image.Image:
    """Return the picture of the sync modes, with longer and with shorter sound."""
    panels = []
    for title, frames, seconds in (
        ("The sound is longer than the video", 6, 10),
        ("The sound is shorter", 6, 4),
    ):
        sent = Strip(
            "sent",
            [k if k < frames else None for k in range(max(frames, seconds))],
            loud(seconds, max(frames, seconds)),
        )
        panels.append(draw([sent, *(made(mode, frames, seconds) for mode in MODES)], frames, title))
    return beside(*panels)


def segments() -> Image.Image:
    """Return the picture of spans that speak: what lies under a frame that is drawn is blue."""
    frames = 10
    spans = (VideoSpan(2, 5, SpanAudio(start_s=1, end_s=3)), VideoSpan(7, 9, SpanAudio()))
    laid = lay_out(
        source_of(frames),
        Sounds(sound_of(6), video=sound_of(frames)),
        JobOptions().with_choices({"segments": spans}),
    )
    heard: list[Colour] = []
    for part in laid.sound:
        colour = QUIET if part.source is None else SOUND if part.is_spoken else OWN
        heard += [colour] * (part.n_samples // SAMPLE_RATE)
    plan = plan_order(laid.order, FPS, 100, laid.drawn)
    result = Strip("result", [plan.source_of(k) for k in range(frames)], heard)
    result = replace(result, marked=[k for each in laid.drawn or () for k in each])
    title = "Framed: the mouth is drawn. Green: the video's own sound. Blue: its segment's audio."
    sent = Strip("video", [*range(frames)], [OWN] * frames)
    return draw([sent, Strip("audio", [None] * 6, [SOUND] * 6), result], frames, title)


def main() -> None:
    """Write all pictures."""
    for name, picture in (("sync-modes", sync_modes()), ("segments", segments())):
        path = PICTURES / f"{name}.png"
        picture.quantize(64).save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
