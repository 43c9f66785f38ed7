"""Take the pictures of the studio in docs/images, of a real application that makes the demo.

.venv/bin/python scripts/studio_pictures.py
"""

from __future__ import annotations

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))

from demo.__main__ import SPEECH_ROOTS  # noqa: E402
from demo.media import demo_speech, demo_video  # noqa: E402
from tests.browser import open_chromium  # noqa: E402
from tests.serve.running import running_app  # noqa: E402
from tests.serve.studio_browser import RENDER_MS, Creator, creator_at  # noqa: E402

MOST_BYTES = 200_000


def save(name: str, creator: Creator) -> None:
    """Store what the window shows."""
    file = IMAGES / f"studio-{name}.webp"
    picture = Image.open(BytesIO(creator.page.screenshot())).convert("RGB")
    picture.save(file, quality=88, method=6)
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}: {size / 1000:.0f} kB")
    assert size < MOST_BYTES


def begin(creator: Creator, video: Path, voice: Path) -> None:
    """Choose the files, and tune what the preview shows."""
    creator.open()
    creator.choose(video, voice)
    creator.wait_preview()


def show_result(creator: Creator, seconds: str) -> None:
    """Wait for the result, and show one place of it."""
    page = creator.page
    creator.wait_title("Your video is ready")
    page.locator("#made-video").evaluate("(video) => video.pause()")
    page.get_by_role("slider", name="Position in both videos").fill(seconds)
    for video in ("#made-video", "#source-video"):
        expect(page.locator(video)).to_have_js_property("seeking", False)
    page.evaluate("document.activeElement.blur()")


def main() -> None:
    """Start an application and a browser, and take every picture."""
    cache = ROOT / ".cache" / "demo"
    video, voice = demo_video(cache), demo_speech(cache, SPEECH_ROOTS)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_app(Path(folder)) as app,
        open_chromium() as browser,
    ):
        base = f"http://127.0.0.1:{app.port}/"
        with creator_at(browser, base) as creator:
            begin(creator, video, voice)
            with creator.new_preview():
                creator.page.get_by_role("slider", name="Below the chin").fill("16")
            creator.page.evaluate("document.activeElement.blur()")
            save("preview", creator)
            creator.start()
            show_result(creator, "1.6")
            save("result", creator)
        with creator_at(browser, base, scheme="dark") as creator:
            begin(creator, video, voice)
            creator.start()
            expect(creator.page.locator("#made-video")).to_be_visible(timeout=RENDER_MS)
            save("rendering", creator)
            creator.wait_title("Your video is ready")
        with creator_at(browser, base, "phone", "dark") as creator:
            begin(creator, video, voice)
            save("phone", creator)


if __name__ == "__main__":
    main()
