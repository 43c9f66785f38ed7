"""Draw the pictures of docs/options.md: what the options of a job's times do.

    .venv/bin/python scripts/options_pictures.py

Every frame that they show comes from the plan that a job would have, so they cannot differ from it.
"""

from __future__ import annotations

import colorsys
import sys
from dataclasses import dataclass
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
from musetalk_pipeline.timeline import lay_out  # noqa: E402

FPS = Fraction(1)  # one frame a second, so that frames can be counted
CELL, GAP, ROW, LABEL = 30, 3, 62, 96  # pixels
PAPER, INK, SOUND, QUIET = (255, 255, 255), (40, 44, 52), (47, 111, 235), (214, 218, 226)
MODES: tuple[SyncMode, ...] = ("bounce", "loop", "cut_off", "silence", "remap")


@dataclass(frozen=True)
class Strip:
    """A row of a picture: the numbers of its frames, None for no picture, and which have sound."""

    label: str
    frames: list[int | None]
    is_heard: list[bool]


def made(mode: SyncMode, frames: int, seconds: int) -> Strip:
    """Return what a job makes of so many frames and seconds of sound."""
    source = SourceVideo(Path("v"), "", 0, 64, 64, FPS, frames, float(frames), ColourTags())
    audio = SpeechAudio(Path("p"), Path("t"), "", 0, seconds * SAMPLE_RATE, float(seconds))
    laid = lay_out(source, audio, JobOptions().with_choices({"sync_mode": mode}))
    segments = plan_order(laid.order, FPS, block_s=100).segments
    shown = [frame for segment in segments for frame in segment.source_frames()]
    return Strip(mode, [*shown], [k < seconds for k in range(len(shown))])


def draw(strips: list[Strip], frames: int, title: str) -> Image.Image:
    """Draw strips below each other. `frames`: of the source; their colours run once around."""
    width = LABEL + max(len(strip.frames) for strip in strips) * (CELL + GAP) + 12
    picture = Image.new("RGB", (width, 34 + len(strips) * ROW), PAPER)
    pen = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    pen.text((12, 8), title, INK, font)
    for row, strip in enumerate(strips):
        top = 34 + row * ROW
        pen.text((12, top + 7), strip.label, INK, font)
        for column, (frame, is_heard) in enumerate(zip(strip.frames, strip.is_heard, strict=True)):
            left = LABEL + column * (CELL + GAP)
            if frame is not None:
                box = (left, top, left + CELL, top + CELL)
                pen.rounded_rectangle(box, 5, colour_of(frame, frames))
                pen.text((left + 15, top + 15), str(frame + 1), INK, small, anchor="mm")
            line = (left, top + CELL + 5, left + CELL + GAP - 1, top + CELL + 12)
            pen.rectangle(line, SOUND if is_heard else QUIET)
    return picture


def colour_of(frame: int, frames: int) -> tuple[int, int, int]:
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
            [k < seconds for k in range(max(frames, seconds))],
        )
        panels.append(draw([sent, *(made(mode, frames, seconds) for mode in MODES)], frames, title))
    return beside(*panels)


def main() -> None:
    """Write all pictures."""
    for name, picture in (("sync-modes", sync_modes()),):
        path = PICTURES / f"{name}.png"
        picture.quantize(64).save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
