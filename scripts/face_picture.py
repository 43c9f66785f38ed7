"""Draw docs/images/face-choice.webp: one frame of a video of two people, for each choice of a face.

    .venv/bin/python scripts/face_picture.py

The people are the demo's portrait and its mirror image in other colours. Each picture is what
`lipsync preview` makes with the choice below it.
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from musetalk_pipeline.engines import make_audio_encoder, make_engine  # noqa: E402
from musetalk_pipeline.face_choice import read_face  # noqa: E402
from musetalk_pipeline.faces import make_detector  # noqa: E402
from musetalk_pipeline.options import JobOptions  # noqa: E402
from musetalk_pipeline.pipeline import Tools  # noqa: E402
from musetalk_pipeline.preview import make_preview  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "face-choice.webp"
WIDTH, HEIGHT, CAPTION, GAP = 420, 240, 30, 12  # pixels
CHOICES = ("largest", "point:105,140@0", "all")
Frame = NDArray[np.uint8]


def people() -> Frame:
    """Return a frame with somebody on the left and somebody larger on the right, RGB."""
    portrait = skimage.data.astronaut()[0:200, 130:315]
    other = portrait[:, ::-1].astype(np.float32) * (0.75, 0.85, 1.0)
    frame = np.full((HEIGHT, WIDTH, 3), (196, 204, 214), np.uint8)
    for picture, left, height in ((portrait, 24, 190), (other.astype(np.uint8), 214, 214)):
        size = (height * picture.shape[1] // picture.shape[0], height)
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        frame[HEIGHT - height :, left : left + size[0]] = small
    return frame


def write_media(folder: Path) -> tuple[Path, Path]:
    """Write a second of video, and a second of sound that opens the mouth."""
    video, sound = folder / "people.mp4", folder / "sound.wav"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(people(), format="rgb24")))
        container.mux(stream.encode())
    seconds = np.arange(16_000) / 16_000
    soundfile.write(sound, 0.5 * np.sin(2 * np.pi * 180 * seconds) * (seconds > 0.3), 16_000)
    return video, sound


def main() -> None:
    """Draw the picture."""
    tools = Tools(make_detector("mesh"), make_engine("warp"), make_audio_encoder("warp"))
    width = len(CHOICES) * (WIDTH + GAP) - GAP
    sheet = Image.new("RGB", (width, HEIGHT + CAPTION), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    with tempfile.TemporaryDirectory() as folder:
        video, sound = write_media(Path(folder))
        for column, choice in enumerate(CHOICES):
            options = JobOptions().with_choices({"face": read_face(choice)})
            marked = make_preview(video, sound, options, tools).marked()
            left = column * (WIDTH + GAP)
            sheet.paste(Image.fromarray(np.ascontiguousarray(marked[..., ::-1])), (left, 0))
            pen.text((left + 4, HEIGHT + 6), f"--face {choice}", (40, 44, 52), font)
    sheet.save(PICTURE, quality=80)
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
