"""The studio in a real browser, in front of the application that most tests share."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, expect

from tests.browser import SIZES, WAIT_MS, Scheme, chromium_path, open_chromium
from tests.conftest import ClipFactory, SpeechFactory
from tests.decoding import frames_of
from tests.media.two_people import Person, scene, write
from tests.serve.running import JOB_S, RunningApp, media_server
from tests.serve.studio_browser import Creator, creator_at
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium_path() is None, reason="Chromium is not installed"),
]

# The page gets pictures as usual, and has decoded them when a test says so.
DECODE_LATER = """
  window.decoded = [];
  HTMLImageElement.prototype.decode = () => new Promise((resolve) => decoded.push(resolve));
"""
LONG = 250  # frames: 10 s, enough for its first seconds to play before its end


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for all tests of this module."""
    expect.set_options(timeout=WAIT_MS)
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def base(app: RunningApp) -> str:
    """The address of the studio."""
    return f"http://127.0.0.1:{app.port}/"


@pytest.fixture
def creator(chromium: Browser, base: str) -> Iterator[Creator]:
    """Somebody who has opened the studio at a desktop."""
    with creator_at(chromium, base) as somebody:
        somebody.open()
        yield somebody
        assert somebody.faults == []


def test_a_creator_makes_a_video_from_files(
    creator: Creator, app: RunningApp, clip: ClipFactory, speech: SpeechFactory, tmp_path: Path
) -> None:
    page = creator.page
    creator.choose(clip(frames=50), speech(2.0))
    expect(page.locator("#source-video")).to_be_visible()
    creator.wait_painted("#video-step canvas")
    creator.wait_painted("#audio-step canvas")
    creator.wait_preview()
    expect(page.locator("#boxes rect").first).to_be_visible()
    job_id = creator.start()
    creator.wait_title("Your video is ready")

    with page.expect_download() as got:
        page.get_by_role("link", name="Download", exact=True).click()
    path = tmp_path / "download.mp4"
    got.value.save_as(path)
    assert len(frames_of(path)) == 50
    assert app.job(job_id)["metadata"] == {
        "video": clip(frames=50).name,
        "voice": "2.0-16000-1-False.wav",
    }

    # Both videos are at the place that the scrubber says.
    creator.go_to(1.2, source_s=1.2)

    page.get_by_text("What it took").click()
    expect(page.locator("#receipt-text")).to_contain_text(
        "The engine warp drew 50 frames on a CPU."
    )


def test_the_preview_follows_the_options_and_the_newest_wins(
    creator: Creator, base: str, clip: ClipFactory, speech: SpeechFactory
) -> None:
    page = creator.page
    creator.choose(clip(), speech(1.0))
    creator.wait_preview()
    with creator.new_preview() as answers:
        for value in ("20", "30", "40"):  # faster than a frame is made
            page.get_by_role("slider", name="Below the chin").fill(value)
    sent = answers[-1].request.post_data_json
    assert sent["params"] == {"extra_margin": 40}
    box = [int(part) for part in answers[-1].headers["x-face-box"].split(",")]
    drawn = page.locator("#boxes rect").first
    assert [float(drawn.get_attribute(name) or 0) for name in ("x", "y")] == box[:2]

    with creator.new_preview() as answers:
        page.get_by_role("radio", name="1:1").check()
    assert answers[-1].request.post_data_json["params"]["fit"] == "crop"
    size = page.locator("#preview-picture").evaluate("(e) => [e.naturalWidth, e.naturalHeight]")
    assert size[0] == size[1]

    with creator.new_preview():
        page.get_by_role("button", name="Reset").click()
    expect(page.get_by_role("slider", name="Below the chin")).to_have_value("10")


def test_a_frame_that_is_old_when_it_is_decoded_is_not_shown_as_the_newest(
    chromium: Browser, base: str, clip: ClipFactory, speech: SpeechFactory
) -> None:
    with creator_at(chromium, base) as creator:
        page = creator.page
        page.add_init_script(DECODE_LATER)
        creator.open()
        creator.choose(clip(), speech(1.0))
        until(lambda: page.evaluate("decoded.length") == 1, "no frame has come", JOB_S)
        page.get_by_role("slider", name="Below the chin").fill("20")
        page.evaluate("decoded[0]()")
        until(lambda: page.evaluate("decoded.length") == 2, "no second frame has come", JOB_S)
        expect(page.locator("#made-frame")).to_have_attribute("data-stale", "")
        expect(page.locator("#preview-picture")).to_be_hidden()
        page.evaluate("decoded[1]()")
        creator.wait_preview()
        assert creator.faults == []


def test_a_job_that_begins_to_run_keeps_its_button(
    creator: Creator, app: RunningApp, clip: ClipFactory, speech: SpeechFactory
) -> None:
    """Otherwise a click that it is replaced under, or the focus on it, would be lost."""
    page = creator.page
    media = {"video_url": clip().as_uri(), "audio_url": speech(1.0).as_uri()}
    with app.drawing_stopped():
        job_id = app.client.post("/v1/avatar/jobs", json=media).json()["id"]
        job = app.wait_for(job_id, "running")
        answer = {"jobs": [job | {"status": "queued"}], "next_cursor": None}
        page.route("**/v1/avatar/jobs?*", lambda route: route.fulfill(json=answer))
        page.dispatch_event("html", "visibilitychange")
        card = page.locator(f'.card[data-job="{job_id}"]')
        expect(card).to_contain_text("Waiting")
        button = card.get_by_role("button", name=re.compile("^Cancel")).element_handle()
        page.unroute("**/v1/avatar/jobs?*")
        page.dispatch_event("html", "visibilitychange")
        expect(card).to_contain_text("Rendering")
        button.click()
        app.wait_for(job_id, "cancelled")


def test_a_click_on_a_face_lets_that_person_speak(
    creator: Creator, app: RunningApp, speech: SpeechFactory, tmp_path: Path
) -> None:
    """The larger one speaks without a choice; the woman is on the left."""
    page = creator.page
    both = scene(Person("woman", 20), Person("man", 270))
    creator.choose(write(tmp_path / "people.mp4", [both] * 30), speech(1.2))
    creator.wait_preview()
    faces = page.get_by_role("button", name=re.compile("Let face"))
    expect(faces).to_have_count(2)
    with creator.new_preview() as answers:
        faces.nth(1).click()
    assert int(answers[-1].headers["x-face-box"].split(",")[2]) < 240
    x, _, width, _ = answers[-1].request.post_data_json["params"]["face"]["box"]
    assert x + width < 240
    job_id = creator.start()
    creator.wait_title("Your video is ready")
    made = frames_of(app.output(app.job(job_id), tmp_path))
    source = frames_of(tmp_path / "people.mp4")
    changed = [np.abs(half).max() for half in np.split(made.astype(int) - source, 2, axis=2)]
    assert changed[0] > 60 > 30 > changed[1]  # the rest differs by the encoding alone


def test_parts_of_both_files_and_a_way_for_lengths_that_differ(
    creator: Creator, app: RunningApp, clip: ClipFactory, speech: SpeechFactory
) -> None:
    page = creator.page
    creator.choose(clip(frames=50), speech(2.0))
    creator.wait_preview()
    page.get_by_text("More options").click()
    page.get_by_label("If the voice is longer").select_option("loop")
    page.get_by_role("slider", name="End of the video").fill("1")
    with creator.new_preview() as answers:
        page.get_by_role("slider", name="Start of the voice").fill("0.4")
    chosen = {"sync_mode": "loop", "video_end_s": 1.0, "audio_start_s": 0.4}
    assert answers[-1].request.post_data_json["params"] == chosen
    job_id = creator.start()
    creator.wait_title("Your video is ready")
    job = app.job(job_id)
    assert job["progress"]["frames_total"] == 40  # 1.6 s of the voice
    # The video, which is shorter, begins again.
    creator.go_to(1.3, source_s=0.3)


def test_the_first_seconds_play_while_the_rest_is_drawn(
    creator: Creator, app: RunningApp, clip: ClipFactory, speech: SpeechFactory
) -> None:
    creator.choose(clip(frames=LONG), speech(LONG / 25))
    creator.wait_preview()
    job_id = creator.start()
    until(lambda: app.job(job_id)["stream_url"], "nothing can be played", JOB_S)
    # However slow the browser is, the rest is not drawn before it plays.
    with app.drawing_stopped():
        creator.wait_title("Rendering your video")
        until(
            lambda: any(each["at"] > 0 for each in creator.recorded("played")),
            lambda: f"the page has played {creator.recorded('played')}",
            WAIT_MS / 1000,
        )
        early = creator.recorded("played")
    assert {(each["status"], each["src"], each["width"]) for each in early} == {
        ("running", "blob:", 320)
    }
    creator.wait_title("Your video is ready")
    expect(creator.page.locator("#made-video")).to_have_attribute("src", re.compile("/files/"))


def test_a_job_is_cancelled_and_retried(
    creator: Creator, app: RunningApp, clip: ClipFactory, speech: SpeechFactory
) -> None:
    page = creator.page
    creator.choose(clip(), speech(1.0))
    creator.wait_preview()
    with app.drawing_stopped():  # the job does not end before it is cancelled
        job_id = creator.start()
        page.get_by_role("button", name="Cancel", exact=True).click()
        creator.wait_title("Cancelled")
        card = page.locator(f'.card[data-job="{job_id}"]')  # other tests have cancelled jobs too
        card.get_by_role("button", name=re.compile("^Retry")).click()
        creator.wait_title("Rendering your video")
        assert app.job(job_id)["status"] == "running"
        card.get_by_role("button", name=re.compile("^Cancel")).click()
        creator.wait_title("Cancelled")
        app.wait_for(job_id, "cancelled")


def test_an_error_says_what_to_do(
    chromium: Browser, base: str, clip: ClipFactory, speech: SpeechFactory
) -> None:
    with creator_at(chromium, base) as creator:
        creator.open()
        creator.choose(clip(faceless=frozenset(range(25))), speech(1.0))
        fault = creator.page.get_by_role("alert")
        expect(fault).to_contain_text("turned to the camera", timeout=60_000)
        job_id = creator.start()
        creator.wait_title("The video could not be made")
        expect(fault).to_contain_text("turned to the camera")
        card = creator.page.locator(f'.card[data-job="{job_id}"]')
        expect(card).to_contain_text("Failed")
        expect(card.get_by_role("button", name=re.compile("^Retry"))).to_be_visible()


def test_files_are_given_by_their_addresses(
    creator: Creator, app: RunningApp, clip: ClipFactory, speech: SpeechFactory, tmp_path: Path
) -> None:
    video, voice = shutil.copy(clip(), tmp_path), shutil.copy(speech(1.0), tmp_path)
    with media_server(tmp_path) as address:
        creator.name_addresses(f"{address}/{Path(video).name}", f"{address}/{Path(voice).name}")
        creator.wait_preview()
        creator.start()
        creator.wait_title("Your video is ready")
        again = json.loads(run_in_shell(creator.copy_commands(), tmp_path))
        # Its files are there until then.
        assert app.wait_for(again["id"], "succeeded", "failed")["status"] == "succeeded"
    assert again["status"] == "queued"
    assert again["input"]["video_url"] == f"{address}/{Path(video).name}"


def test_the_copied_commands_send_files_and_do_the_job(
    creator: Creator, app: RunningApp, clip: ClipFactory, speech: SpeechFactory, tmp_path: Path
) -> None:
    video, voice = tmp_path / "it's $HOME.mp4", tmp_path / "voice.wav"
    shutil.copy(clip(), video)
    shutil.copy(speech(1.0), voice)
    creator.choose(video, voice)
    creator.wait_preview()
    creator.start()
    creator.wait_title("Your video is ready")
    again = json.loads(run_in_shell(creator.copy_commands(), tmp_path))
    assert app.wait_for(again["id"], "succeeded", "failed")["status"] == "succeeded"


def run_in_shell(command: str, folder: Path) -> str:
    """Run what was copied, as somebody would who pastes it into a terminal."""
    ran = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return ran.stdout


def test_a_picture_is_dropped_and_a_voice_recorded(
    creator: Creator, app: RunningApp, tmp_path: Path
) -> None:
    page = creator.page
    picture = tmp_path / "portrait.png"
    cv2.imwrite(str(picture), scene(Person("woman", 160)))
    creator.drop(picture)
    expect(page.locator("#source-picture")).to_be_visible()
    expect(page.locator("#video-step")).to_contain_text("picture · 480 × 270")
    page.get_by_role("button", name="Record").click()
    # Not one certain second, which a browser that is read rarely may have left behind.
    expect(page.locator("#audio-step .time")).to_have_text(re.compile("^0:(0[2-9]|[1-5][0-9])$"))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#audio-step")).to_contain_text("recording.webm")
    creator.wait_preview()
    job_id = creator.start()
    creator.wait_title("Your video is ready")
    assert app.job(job_id)["progress"]["frames_total"] >= 25


def test_the_keyboard_is_enough(creator: Creator, clip: ClipFactory, speech: SpeechFactory) -> None:
    page = creator.page
    # From the first listener on, the browser hands choosers over instead of showing them.
    page.on("filechooser", lambda chooser: None)
    for label, file in (
        ("Choose a file for the video", clip()),
        ("Choose a file for the voice", speech(1.0)),
    ):
        creator.tab_to(label)
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(file)
    creator.wait_preview()
    page.get_by_role("link", name="Skip to the studio").focus()
    with creator.new_preview():
        creator.tab_to("Below the chin")
        page.keyboard.press("ArrowRight")
    creator.tab_to("Source")
    with creator.new_preview():
        page.keyboard.press("ArrowRight")  # to 9:16
    creator.tab_to("Make the video")
    page.keyboard.press("Enter")
    creator.wait_title("Your video is ready")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_studio_is_accessible_and_fits(
    chromium: Browser,
    base: str,
    clip: ClipFactory,
    speech: SpeechFactory,
    size: str,
    scheme: Scheme,
) -> None:
    with creator_at(chromium, base, size, scheme) as creator:
        creator.open()
        check_page(creator, "empty")
        creator.page.locator("#worker-button").click()
        check_page(creator, "worker")
        creator.page.keyboard.press("Escape")
        creator.choose(clip(), speech(1.0))
        creator.wait_preview()
        creator.page.locator("#more summary").click()
        creator.page.get_by_role("radio", name="9:16").check()
        creator.wait_preview()
        check_page(creator, "preview")
        creator.start()
        check_page(creator, "rendering")
        creator.wait_title("Your video is ready")
        creator.page.get_by_text("What it took").click()
        check_page(creator, "result")
        assert creator.faults == []


def check_page(creator: Creator, state: str) -> None:
    """Check what axe-core finds, and that nothing is wider than the window."""
    assert (state, creator.violations()) == (state, [])
    assert (state, creator.overflow_px()) == (state, 0)


def test_a_job_is_there_again_after_a_reload(
    creator: Creator, base: str, app: RunningApp, clip: ClipFactory, speech: SpeechFactory
) -> None:
    body: dict[str, Any] = {"video_url": clip().as_uri(), "audio_url": speech(1.0).as_uri()}
    job_id = app.client.post("/v1/avatar/jobs", json=body).json()["id"]
    creator.page.goto(f"{base}#job={job_id}")
    creator.page.reload()
    creator.wait_title("Your video is ready")
    expect(creator.page.locator("#made-video")).to_be_visible()
