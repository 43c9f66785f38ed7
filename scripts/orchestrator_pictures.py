"""Take the pictures of the orchestrator's pages, docs/images/orchestrator-*.png.

    .venv/bin/python scripts/orchestrator_pictures.py

It needs Chromium. The jobs and workers are those that the tests have (tests/orchestrator).
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))

from tests.browser import open_chromium  # noqa: E402
from tests.orchestrator.databases import RULES, SqliteFiles, open_bench  # noqa: E402
from tests.orchestrator.page_facts import OFFERS, Plant  # noqa: E402
from tests.orchestrator.pages_browser import operator_at  # noqa: E402
from tests.orchestrator.running import running_service  # noqa: E402

# A name, a page, the size of the window, and the colour scheme.
PICTURES = (
    ("overview", "/", "desktop", "light"),
    ("job", "/job?id=keynote-4k", "desktop", "dark"),
    ("phone", "/", "phone", "dark"),
)


def save(name: str, png: bytes) -> None:
    """Store a picture with 256 colours, which a page of text does not show."""
    file = IMAGES / f"orchestrator-{name}.png"
    few = (
        Image.open(BytesIO(png))
        .convert("RGB")
        .quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    few.save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Serve a database that looks lived in, and take every picture."""
    with tempfile.TemporaryDirectory() as folder:
        files = SqliteFiles(Path(folder) / "template.db")
        bench = open_bench(files.new(Path(folder)), replace(RULES, offers=OFFERS))
        Plant(bench).fill()
        with running_service(bench) as running, open_chromium() as browser:
            for name, path, size, scheme in PICTURES:
                with operator_at(browser, running, size, scheme) as somebody:
                    somebody.sign_in()
                    somebody.open(path)
                    save(name, somebody.page.screenshot())


if __name__ == "__main__":
    main()
