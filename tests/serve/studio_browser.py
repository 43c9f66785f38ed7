"""A creator at a real browser, in the studio of a running application."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Response, expect

from tests.browser import Scheme, Visitor, faults_of, window
from tests.waiting import until

RENDER_MS = 150_000
NEAR_S = 0.05
# What the page does from its first moment: broken rules of the policy, and when the result plays.
_RECORD = """
  window.broken = []; window.played = [];
  document.addEventListener("securitypolicyviolation", (e) => broken.push(e.violatedDirective + " " + e.blockedURI));
  document.addEventListener("timeupdate", (e) => e.target.id === "made-video" && played.push({
    at: e.target.currentTime, status: document.getElementById("job").dataset.status, src: e.target.src.slice(0, 5),
    width: e.target.videoWidth,
  }), true);
"""  # noqa: E501 - JavaScript
_IS_PAINTED = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size > 1;
}"""
_PLAYERS = """() => {
  const [source, made, scrubber] = ["source-video", "made-video", "scrubber"].map((id) => document.getElementById(id));
  return {
    source: source.currentTime, made: made.currentTime, is_seeking: source.seeking || made.seeking,
    is_loaded: made.src.includes("/files/") && made.readyState > 0 && Number(scrubber.max) === made.duration,
  };
}"""  # noqa: E501 - JavaScript
_TRANSFER = """(files) => {
  const transfer = new DataTransfer();
  for (const { name, type, data } of files) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  return transfer;
}"""


@dataclass(frozen=True, slots=True)
class Creator(Visitor):
    """Somebody who makes a video."""

    base: str

    def open(self) -> None:
        """Open the studio and wait until it knows the worker."""
        self.page.goto(self.base)
        expect(self.page.locator("#worker-line")).to_have_text(re.compile("Ready|Busy"))
        expect(self.page.locator("#video-step button").first).to_be_visible()

    def choose(self, video: Path, voice: Path) -> None:
        """Choose two files of this device."""
        self.page.locator("#video-file").set_input_files(video)
        self.page.locator("#audio-file").set_input_files(voice)

    def drop(self, *files: Path) -> None:
        """Drop files of this device somewhere on the page."""
        given = [
            {
                "name": file.name,
                "type": mimetypes.guess_type(file.name)[0],
                "data": base64.b64encode(file.read_bytes()).decode(),
            }
            for file in files
        ]
        transfer = self.page.evaluate_handle(_TRANSFER, given)
        self.page.dispatch_event("main", "drop", {"dataTransfer": transfer})

    def name_addresses(self, video: str, voice: str) -> None:
        """Give the addresses of two files."""
        for what, address in (("video", video), ("voice", voice)):
            button = re.compile(f"Use an address( for the {what})?$")
            step = "#video-step" if what == "video" else "#audio-step"
            self.page.locator(step).get_by_role("button", name=button).click()
            field = self.page.locator(step).get_by_role("textbox")
            field.fill(address)
            field.press("Enter")

    def wait_preview(self) -> None:
        """Wait until a finished frame is shown and no newer one is being made."""
        expect(self.page.locator("#preview-picture")).to_be_visible(timeout=RENDER_MS)
        expect(self.page.locator("#made-frame")).not_to_have_attribute(
            "data-stale", "", timeout=RENDER_MS
        )

    @contextmanager
    def new_preview(self) -> Iterator[list[Response]]:
        """Collect the answers with previews while options change; wait for the last frame."""
        answers: list[Response] = []
        before = self.page.locator("#preview-picture").get_attribute("src")

        def collect(answer: Response) -> None:
            if answer.url.endswith("/preview"):
                answers.append(answer)

        self.page.on("response", collect)
        yield answers
        expect(self.page.locator("#preview-picture")).not_to_have_attribute(
            "src", before or "", timeout=RENDER_MS
        )
        self.wait_preview()
        self.page.remove_listener("response", collect)

    def start(self) -> str:
        """Make the video. Return the id of the job."""
        self.page.get_by_role("button", name="Make the video").click()
        self.page.wait_for_url(re.compile("#job="))
        return self.page.url.partition("#job=")[2]

    def wait_title(self, title: str) -> None:
        """Wait until the job on the stage has this title."""
        expect(self.page.locator("#job-title")).to_have_text(title, timeout=RENDER_MS)

    def wait_painted(self, selector: str) -> None:
        """Wait until a canvas shows something: pixels that differ."""
        canvas = self.page.locator(selector)
        until(lambda: canvas.evaluate(_IS_PAINTED), f"{selector} shows nothing")

    def go_to(self, seconds: float, source_s: float) -> None:
        """Move the result by the scrubber, and wait until the source is where it has to be then."""
        until(lambda: self._players()["is_loaded"], lambda: f"no result: {self._players()}")
        self.page.locator("#made-video").evaluate("(video) => video.pause()")
        self.page.get_by_role("slider", name="Position in both videos").fill(str(seconds))

        def are_there() -> bool:
            at = self._players()
            is_near = abs(at["made"] - seconds) <= NEAR_S and abs(at["source"] - source_s) <= NEAR_S
            return is_near and not at["is_seeking"]

        until(are_there, lambda: f"not at {seconds} and {source_s} s: {self._players()}")

    def _players(self) -> dict[str, Any]:
        """Return where both videos are, in seconds, and whether they can be moved and are."""
        found: dict[str, Any] = self.page.evaluate(_PLAYERS)
        return found

    def copy_commands(self) -> str:
        """Press the button that copies the commands, and return what has been copied."""
        self.page.get_by_role("button", name="Copy as curl").click()
        # The browser writes behind the click. Before that, the clipboard has another test's text.
        expect(self.page.locator("#said")).to_have_text("The commands were copied.")
        copied: str = self.page.evaluate("navigator.clipboard.readText()")
        return copied

    def recorded(self, name: str) -> list[Any]:
        """Return what the page has recorded: `played` or `broken`."""
        found: list[Any] = self.page.evaluate(name)
        return found


@contextmanager
def creator_at(
    browser: Browser, base: str, size: str = "desktop", scheme: Scheme = "light"
) -> Iterator[Creator]:
    """Open a window of a size in a colour scheme. Fail if the page breaks a rule of its policy."""
    with window(browser, size, scheme) as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base)
        context.add_init_script(_RECORD)
        page = context.new_page()
        creator = Creator(page, faults_of(page), base)
        yield creator
        assert creator.recorded("broken") == []
