"""Draw the moving picture of README.md: a source and its result, side by side.

    make run
    .venv/bin/python scripts/moving_picture.py .cache/demo/face.mp4 out/demo-….mp4 \\
        docs/images/demo.webp

The still below it is the contact sheet that `make run` leaves in out/, as a JPEG.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

# The demo's head, in its 720-pixel frames; found by looking.
CROP = (85, 4, 565, 484)
PANEL_PX = 280
LABEL_PX = 22
EVERY = 2  # of the frames: half the rate is smooth enough for a picture
QUALITY = 30


def panels(path: Path, first: int, count: int, label: str) -> Iterator[Image.Image]:
    """Yield every second of `count` frames from `first` on, cropped and labelled."""
    font = ImageFont.load_default(size=14)
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index >= first + count:
                return
            if index < first or (index - first) % EVERY:
                continue
            panel = Image.new("RGB", (PANEL_PX, PANEL_PX + LABEL_PX), (24, 24, 24))
            ImageDraw.Draw(panel).text((8, 3), label, (230, 230, 230), font)
            face = (
                frame.to_image().crop(CROP).resize((PANEL_PX, PANEL_PX), Image.Resampling.LANCZOS)
            )
            panel.paste(face, (0, LABEL_PX))
            yield panel


def main() -> None:
    """Write the picture that the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path, help="a .webp file")
    parser.add_argument("--first", type=int, default=0, help="first frame")
    parser.add_argument("--frames", type=int, default=177)
    arguments = parser.parse_args()
    pictures = []
    for left, right in zip(
        panels(arguments.source, arguments.first, arguments.frames, "source"),
        panels(arguments.result, arguments.first, arguments.frames, "result"),
        strict=True,
    ):
        both = Image.new("RGB", (2 * PANEL_PX, PANEL_PX + LABEL_PX))
        both.paste(left, (0, 0))
        both.paste(right, (PANEL_PX, 0))
        pictures.append(both)
    with av.open(str(arguments.result)) as container:
        rate = container.streams.video[0].average_rate or 25
    pictures[0].save(
        arguments.picture,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 * EVERY / rate),
        loop=0,
        quality=QUALITY,
        method=6,
    )
    print(f"{arguments.picture}: {len(pictures)} frames, {arguments.picture.stat().st_size} bytes")


if __name__ == "__main__":
    main()
