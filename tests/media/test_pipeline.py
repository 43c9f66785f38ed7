"""Whole jobs in one process with the engine that needs no weights; every result is decoded and
looked at.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import (
    AudioTooShort,
    DeadlineExceeded,
    InvalidAudio,
    InvalidOptions,
    InvalidVideo,
    JobCancelled,
    NoFaceFound,
)
from musetalk_pipeline.faces.face_boxes import face_of
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.options import (
    EncodeOptions,
    FaceOptions,
    FrameOptions,
    JobOptions,
    MediaLimits,
    SpeechOptions,
)
from musetalk_pipeline.pipeline import DEFAULT_MEMORY, FrameMemory, Result, RunProgress, Tools, run
from musetalk_pipeline.plan import count_output_frames, source_of
from musetalk_pipeline.stages import open_job
from musetalk_pipeline.watch import Watch
from tests.decoding import frames_of

# Lossless: what comes out of the file is exactly what was put into the encoder.
LOSSLESS = JobOptions(encode=EncodeOptions(crf=0, preset="ultrafast"))
QUICK = JobOptions(encode=EncodeOptions(preset="ultrafast"))


@dataclass(frozen=True)
class Decoded:
    """`frames`: (n, H, W, 3) uint8 BGR. Seconds are those of the two tracks."""

    frames: np.ndarray
    fps: Fraction
    picture_s: float
    sound_s: float
    codec: str
    pixel_format: str


def decode(path: Path) -> Decoded:
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video)]
        return Decoded(
            np.stack(frames),
            video.average_rate,
            float(video.duration * video.time_base),
            float(sound.duration * sound.time_base),
            video.codec_context.name,
            video.codec_context.pix_fmt,
        )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def openings(frames: np.ndarray, tools: Tools) -> np.ndarray:
    """How far the inner lips are apart in each frame, in mouth widths."""
    found = tools.detector.detect(list(frames))
    assert all(found), "every frame of the result should show a face"
    points = np.stack([landmarks.points for landmarks in found if landmarks])
    gap = np.linalg.norm(points[:, 62] - points[:, 66], axis=1)
    return gap / np.linalg.norm(points[:, 48] - points[:, 54], axis=1)


def loudness(path: Path, fps: Fraction, count: int) -> np.ndarray:
    """Root mean square of the sound during each output frame."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
        parts = [
            out.to_ndarray()[0] for f in container.decode(audio=0) for out in resampler.resample(f)
        ]
    samples = np.concatenate(parts)
    edges = [round(i / fps * 16_000) for i in range(count + 1)]
    return np.array([np.sqrt(np.mean(samples[a:b] ** 2)) for a, b in pairwise(edges)])


def box_of(frame: np.ndarray, tools: Tools) -> Box:
    [found] = tools.detector.detect([frame])
    face = face_of(found, frame.shape[1], frame.shape[0], FaceOptions())
    assert face is not None
    return face.box


def outside(shape: tuple[int, ...], box: Box) -> np.ndarray:
    keep = np.ones(shape[:2], bool)
    keep[max(0, box.y0 - 1) : box.y1 + 1, max(0, box.x0 - 1) : box.x1 + 1] = False
    return keep


@pytest.fixture
def job(tmp_path, tools):
    """Return `job(video, audio, options) -> (Result, Decoded)`; checks what holds for all."""

    def do(
        video: Path,
        audio: Path,
        options: JobOptions = QUICK,
        seconds: float | None = None,
        memory: FrameMemory = DEFAULT_MEMORY,
    ):
        out = tmp_path / "out.mp4"
        result = run(video, audio, out, options, tools, memory=memory)
        decoded = decode(out)
        assert list(tmp_path.iterdir()) == [out]
        assert result.frames == len(decoded.frames)
        assert (result.height, result.width) == decoded.frames.shape[1:3]
        assert result.fps == decoded.fps
        assert (decoded.codec, decoded.pixel_format) == ("h264", "yuv420p")
        # Equally long, within one frame (and one AAC frame of 1024 samples, which is shorter).
        assert abs(decoded.picture_s - decoded.sound_s) <= 1 / decoded.fps + 0.03
        if seconds is not None:
            assert result.frames == count_output_frames(round(seconds * 16_000), decoded.fps)
        return result, decoded

    return do


def test_the_mouth_follows_the_speech(job, clip, speech, tools):
    result, decoded = job(clip(frames=75), speech(3.0), seconds=3.0)
    assert result.frames_with_face == 75
    levels = loudness(speech(3.0), decoded.fps, 75)
    assert np.corrcoef(openings(decoded.frames, tools), levels)[0, 1] >= 0.6


def test_silence_leaves_the_mouth_still(job, clip, speech, tools):
    _, silent = job(clip(frames=30, is_moving=False), speech(1.2, silence=True), seconds=1.2)
    _, spoken = job(clip(frames=30, is_moving=False), speech(1.2), seconds=1.2)
    still, moving = (np.std(openings(d.frames, tools)) for d in (silent, spoken))
    assert still < 0.01
    assert moving > 3 * still


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        pytest.param({"frames": 40}, 0.8, id="audio shorter than the video"),
        pytest.param({"frames": 12}, 1.4, id="audio longer: ping-pong"),
        pytest.param({"frames": 31, "fps": Fraction(30000, 1001)}, 1.0, id="29.97"),
        pytest.param({"frames": 25, "fps": Fraction(24000, 1001)}, 1.0, id="23.976"),
        pytest.param({"frames": 50, "fps": Fraction(50)}, 0.8, id="50"),
        pytest.param({"frames": 60, "fps": Fraction(60)}, 0.8, id="60"),
        pytest.param({"frames": 1}, 0.4, id="one frame"),
        pytest.param({"frames": 20}, 0.08, id="the shortest audio that is taken"),
    ],
)
def test_frames_are_counted_and_ordered_as_planned(job, clip, speech, tools, fields, seconds):
    """Decoded at no loss, each output frame equals its source frame outside the face."""
    video = clip(**fields)
    result, decoded = job(video, speech(seconds), LOSSLESS, seconds)
    sources = frames_of(video)
    assert result.frames_with_face == result.frames
    assert decoded.fps == fields.get("fps", Fraction(25))
    for i, frame in enumerate(decoded.frames):
        source = sources[source_of(i, len(sources))]
        keep = outside(frame.shape, box_of(source, tools))
        np.testing.assert_array_equal(frame[keep], source[keep])


def test_the_sources_frames_are_played_at_the_rate_asked_for(job, clip, speech):
    """Q24: the realtime script plays every source at 25 frames a second."""
    faceless = frozenset({3, 8})
    video = clip(frames=20, fps=Fraction(50), faceless=faceless)
    options = replace(LOSSLESS, frame=FrameOptions(fps=25.0))
    result, decoded = job(video, speech(0.6), options, 0.6)
    assert (result.frames, decoded.fps) == (15, 25)
    sources = frames_of(video)
    for i in faceless:
        np.testing.assert_array_equal(decoded.frames[i], sources[i])  # none left out


def test_a_whole_frame_rate_counts_as_the_reference_and_plays_at_the_real_one(job, clip, speech):
    """Q7: 2 s at 29.97 are 59 frames; the reference has 58, and plays them 3 % too fast."""
    video = clip(frames=31, fps=Fraction(30000, 1001))
    options = replace(QUICK, speech=SpeechOptions(frame_rate="whole"))
    result, decoded = job(video, speech(2.0), options)
    assert (result.frames, decoded.fps) == (58, Fraction(30000, 1001))


def test_outside_the_face_the_encoded_picture_is_the_source(job, clip, speech, tools):
    video = clip(frames=25, width=640, height=360)
    _, decoded = job(video, speech(1.0), JobOptions(), 1.0)
    for frame, source in zip(decoded.frames, frames_of(video), strict=True):
        keep = outside(frame.shape, box_of(source, tools))
        assert psnr(frame[keep], source[keep]) >= 40


def test_frames_without_a_face_pass_through_at_their_own_index(job, clip, speech):
    """The reference drops them, so that pictures and faces drift apart, and cuts the video off."""
    faceless = frozenset({0, 9, 10, 11, 24})
    video = clip(frames=25, faceless=faceless)
    result, decoded = job(video, speech(2.0), LOSSLESS, 2.0)
    sources = frames_of(video)
    passed = [i for i in range(50) if source_of(i, 25) in faceless]
    for i in passed:
        np.testing.assert_array_equal(decoded.frames[i], sources[source_of(i, 25)])
    assert result.frames_with_face == 50 - len(passed)
    for i in set(range(50)) - set(passed):
        assert psnr(decoded.frames[i], sources[source_of(i, 25)]) > 25  # its own frame, no other


def test_faceless_frames_that_the_audio_does_not_reach_are_not_refused(job, clip, speech):
    options = replace(QUICK, face=FaceOptions(faceless="refuse"))
    result, _ = job(clip(frames=25, faceless=frozenset({20})), speech(0.8), options, 0.8)
    assert result.frames_with_face == result.frames == 20


def test_an_odd_size_loses_its_last_row_and_column(job, clip, speech):
    odd = {"width": 321, "height": 241, "ffmpeg_output": ("-pix_fmt", "yuv444p")}
    result, _ = job(clip(frames=10, **odd), speech(0.4), seconds=0.4)
    assert (result.width, result.height) == (320, 240)


def test_a_turned_video_comes_out_upright(job, clip, speech, tools):
    result, decoded = job(clip(frames=10, rotation=90), speech(0.4), seconds=0.4)
    assert (result.width, result.height) == (320, 240)
    assert result.frames_with_face == 10
    box = box_of(decoded.frames[0], tools)
    assert box.height > box.width


def test_a_variable_rate_is_brought_to_a_constant_one(job, clip, speech):
    video = clip(frames=20, is_variable_rate=True)
    result, decoded = job(video, speech(1.0), LOSSLESS, None)
    assert result.frames == count_output_frames(16_000, decoded.fps)
    assert result.frames_with_face == result.frames


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (96_000, 6)])
def test_any_common_sound_is_taken(job, clip, speech, rate, channels):
    job(clip(frames=10), speech(0.6, rate=rate, channels=channels), seconds=0.6)


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (FrameOptions("180p"), (240, 180)),
        (FrameOptions("200x200"), (200, 200)),
        (FrameOptions(None, "9:16"), (320, 568)),
        (FrameOptions("240p", "1:1", "crop"), (240, 240)),
        (FrameOptions("240p", "16:9", "blur"), (426, 240)),
    ],
)
def test_the_size_asked_for_is_made(job, clip, speech, frame, size):
    result, _ = job(clip(frames=5), speech(0.2), replace(QUICK, frame=frame), 0.2)
    assert (result.width, result.height) == size
    assert result.frames_with_face == 5


def test_cropping_follows_the_face(job, clip, speech, tools):
    options = replace(QUICK, frame=FrameOptions(None, "1:1", "crop"))
    video = clip(frames=8, width=480, height=240, face_at=(0.75, 0.5))
    _, decoded = job(video, speech(0.3), options)
    box = box_of(decoded.frames[0], tools)
    assert abs((box.x0 + box.x1) / 2 - 120) < 25


def test_a_face_over_the_edge_keeps_its_shape_unless_it_shall_be_stretched(
    job, clip, speech, tools
):
    """Q13. In silence the mouth is drawn as it is, so what differs from the source is the paste."""
    video, quiet = clip(frames=4, face_at=(0.92, 0.5), is_moving=False), speech(0.2, silence=True)
    sources = frames_of(video)
    [found] = tools.detector.detect([sources[0]])
    assert found.points[:, 0].max() > 335  # well over the edge at 320
    errors = {}
    for edges in ("clip", "stretch"):
        options = replace(LOSSLESS, face=FaceOptions(edges=edges))
        result, decoded = job(video, quiet, options, 0.2)
        assert result.frames_with_face == result.frames == 5
        keep = outside(sources[0].shape, box_of(sources[0], tools))
        np.testing.assert_array_equal(decoded.frames[0][keep], sources[0][keep])
        errors[edges] = np.abs(decoded.frames[0].astype(int) - sources[0]).sum()
    assert errors["stretch"] > 2 * errors["clip"] > 0


def test_a_mouth_at_rest_in_silence_is_the_source(job, clip, speech):
    video = clip(frames=15)
    options = replace(LOSSLESS, speech=SpeechOptions(rest_in_silence=True))
    _, decoded = job(video, speech(0.6, silence=True), options, 0.6)
    np.testing.assert_array_equal(decoded.frames, frames_of(video))


def test_a_mouth_that_rests_first_speaks_as_it_would_without(job, clip, speech, tmp_path_factory):
    """Silent frames are not drawn at all; those that follow must get their own faces."""
    video, (voice, rate) = clip(frames=15), soundfile.read(speech(1.0), dtype="float32")
    audio = tmp_path_factory.mktemp("late") / "late.wav"
    soundfile.write(audio, np.concatenate([np.zeros(rate), voice]), rate, subtype="PCM_16")
    resting = replace(LOSSLESS, speech=SpeechOptions(rest_in_silence=True))
    (_, rested), (_, plain) = job(video, audio, resting, 2.0), job(video, audio, LOSSLESS, 2.0)
    sources = [frames_of(video)[source_of(k, 15)] for k in range(len(plain.frames))]
    for rested_frame, source in zip(rested.frames[:20], sources, strict=False):
        np.testing.assert_array_equal(rested_frame, source)
    spoken = [
        k
        for k, frame in enumerate(plain.frames)
        if np.array_equal(rested.frames[k], frame) and not np.array_equal(frame, sources[k])
    ]
    assert len(spoken) >= 10 and spoken[0] >= 20


def blocks_of(frames: int, **more: int) -> FrameMemory:
    """Return the memory that allows blocks of so many frames of a 320x240 clip."""
    return FrameMemory(block_bytes=320 * 240 * 3 // 2 * frames, **more)


def test_smoothed_boxes_do_not_depend_on_the_blocks(job, clip, speech):
    options = replace(LOSSLESS, face=FaceOptions(box_smoothing=3))
    _, whole = job(clip(frames=20), speech(0.8), options)
    _, in_blocks = job(clip(frames=20), speech(0.8), options, memory=blocks_of(6))
    np.testing.assert_array_equal(in_blocks.frames, whole.frames)


def test_a_result_does_not_depend_on_the_blocks(job, clip, speech):
    """There are seven blocks, of which two stay in memory; the others come back from disk."""
    _, whole = job(clip(frames=20), speech(2.0), LOSSLESS)
    _, in_blocks = job(clip(frames=20), speech(2.0), LOSSLESS, memory=blocks_of(3))
    np.testing.assert_array_equal(in_blocks.frames, whole.frames)


def test_frames_that_were_kept_and_frames_decoded_again_give_the_same(job, clip, speech):
    """The turn at the last frame, a faceless frame, and a block that one segment uses in part."""
    video, audio = clip(frames=20, faceless=frozenset({7})), speech(1.0)
    _, kept = job(video, audio, LOSSLESS, memory=blocks_of(6))
    _, again = job(video, audio, LOSSLESS, memory=blocks_of(6, kept_bytes=0))
    np.testing.assert_array_equal(again.frames, kept.frames)


def test_progress_goes_forward_to_the_last_frame(clip, speech, tmp_path, tools):
    seen: list[RunProgress] = []
    run(clip(frames=12), speech(1.4), tmp_path / "o.mp4", QUICK, tools, on_progress=seen.append)
    assert [p.stage for p in seen[:2]] == ["open", "compose"]
    assert seen[-1] == RunProgress("finish", 35, 35)
    done = [p.frames_done for p in seen]
    assert done == sorted(done)


class TestRefusals:
    """Every one of them leaves the output folder empty, and nothing elsewhere (no_leftovers)."""

    @pytest.fixture(autouse=True)
    def nothing_written(self, tmp_path):
        yield
        assert not list(tmp_path.glob("out*"))

    def make(
        self, video: Path, audio: Path, tmp_path: Path, tools: Tools, **more: object
    ) -> Result:
        return run(video, audio, tmp_path / "out.mp4", QUICK, tools, **more)  # type: ignore[arg-type]

    def test_no_face_anywhere(self, clip, speech, tmp_path, tools):
        with pytest.raises(NoFaceFound, match="No face was found"):
            self.make(clip(frames=8, faceless=frozenset(range(8))), speech(0.6), tmp_path, tools)

    def test_a_frame_without_a_face_if_all_must_have_one(self, clip, speech, tmp_path, tools):
        """Q1: the number is the source's own, whatever rate it is played at."""
        video = clip(frames=25, faceless=frozenset({9, 10}))
        options = replace(QUICK, face=FaceOptions(faceless="refuse"), frame=FrameOptions(fps=12.5))
        with pytest.raises(NoFaceFound, match=r"Frame 9 of the video, at 0\.36 s") as refused:
            run(video, speech(0.9), tmp_path / "out.mp4", options, tools)
        assert refused.value.details == {"frame": 9, "at_s": 0.36}

    def test_a_face_only_where_the_audio_does_not_reach(self, clip, speech, tmp_path, tools):
        with pytest.raises(NoFaceFound):
            self.make(clip(frames=20, faceless=frozenset(range(9))), speech(0.3), tmp_path, tools)

    def test_less_audio_than_one_frame(self, clip, speech, tmp_path, tools):
        slow = clip(frames=8, fps=Fraction(8))
        with pytest.raises(AudioTooShort, match="less than one frame"):
            self.make(slow, speech(0.1), tmp_path, tools)

    def test_the_files_in_the_wrong_order(self, clip, speech, tmp_path, tools):
        with pytest.raises(InvalidVideo):
            self.make(speech(0.6), clip(frames=8), tmp_path, tools)
        with pytest.raises(InvalidAudio):
            self.make(clip(frames=8), clip(frames=8), tmp_path, tools)

    def test_both_bad_the_video_is_named(self, speech, tmp_path, tools):
        nothing = tmp_path / "nothing.wav"
        nothing.write_bytes(b"")
        with pytest.raises(InvalidVideo):
            self.make(speech(0.6), nothing, tmp_path, tools)

    def test_long_audio_is_given_up_when_the_video_is_refused(self, speech, tmp_path, tools):
        files, work_dir = JobFiles(speech(0.6), speech(1800.0, silence=True)), tmp_path / "work"
        work_dir.mkdir()
        with pytest.raises(InvalidVideo):  # at once; the sound alone takes a minute
            open_job(files, work_dir, QUICK, MediaLimits(), tools.detector)
        assert not list(work_dir.iterdir())  # decoded sound would be there

    def test_an_impossible_size(self, clip, speech, tmp_path, tools):
        options = replace(QUICK, frame=FrameOptions("9999x9999"))
        with pytest.raises(InvalidOptions):
            run(clip(frames=8), speech(0.6), tmp_path / "out.mp4", options, tools)

    @pytest.mark.parametrize("fps", [0.5, 121.0, float("nan")])
    def test_an_impossible_rate(self, clip, speech, tmp_path, tools, fps):
        options = replace(QUICK, frame=FrameOptions(fps=fps))
        with pytest.raises(InvalidOptions, match="frames a second"):
            run(clip(frames=8), speech(0.6), tmp_path / "out.mp4", options, tools)

    def test_a_cancelled_job_stops(self, clip, speech, tmp_path, tools):
        cancelled = threading.Event()

        def cancel(progress: RunProgress) -> None:
            if progress.frames_done:
                cancelled.set()

        with pytest.raises(JobCancelled):
            self.make(
                clip(frames=12),
                speech(6.0),
                tmp_path,
                tools,
                watch=Watch(cancelled),
                on_progress=cancel,
            )

    def test_a_deadline_ends_a_job(self, clip, speech, tmp_path, tools):
        with pytest.raises(DeadlineExceeded):
            self.make(clip(frames=12), speech(1.4), tmp_path, tools, watch=Watch(deadline_s=1e-6))
