"""Everything but the networks, compared with decoding and encoding alone, in one run.

    python benchmarks/nonmodel.py [--seconds 10] [--preset medium] [--rounds 3] [--video FILE]

Landmarks count as a network: they are found beforehand and replayed, and so are the drawn faces.
What is timed is the rest of a job: checking both files, decoding, boxes, crops, parser inputs,
audio, masks, paste, encoding, stitching. The yardstick is decoding and encoding alone: one
decoder's frames going straight into one encoder with the same settings and number of threads, the
sound turned into AAC by a plain ffmpeg, both joined. Rounds alternate; the least of each counts.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from media import make_clip, make_speech
from numpy.typing import NDArray
from project import RESULTS

from musetalk_pipeline.artifacts import AvatarBlock, DrawnFaces, PreparedBlock, Speech
from musetalk_pipeline.engines import make_audio_encoder
from musetalk_pipeline.faces import Landmarks, make_detector
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.encode import PieceEncoder, stitch
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.options import EncodeOptions, FrameOptions, JobOptions, MediaLimits
from musetalk_pipeline.pipeline import Tools, run
from musetalk_pipeline.pixels.blend import MASK_SIDE
from musetalk_pipeline.pixels.picture import fit_picture
from musetalk_pipeline.plan import Segment, count_output_frames
from musetalk_pipeline.watch import Check, go_on

SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
GOAL = 1.25
RESULT = RESULTS / "nonmodel.json"


class KnownFaces:
    """A detector that already knows: the points of each frame, in the order they are asked for."""

    name = "known"

    def __init__(self, found: Sequence[Landmarks | None]) -> None:
        self._found = found
        self._next = 0

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[Landmarks | None]:
        """Return the next points, having looked at each frame as a real detector does."""
        for place in range(len(frames)):
            frames[place]  # converted to BGR here; that is not the network's work
        if len(frames) == 1:  # a look before the job begins, at a frame out of order
            return [self._found[0]]
        start = self._next
        self._next += len(frames)
        return [self._found[i % len(self._found)] for i in range(start, self._next)]


class KnownPictures:
    """An engine that has drawn already: one face, one mask, no arithmetic."""

    name, model_version, needs_parse_inputs = "known", "0", True

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        self._face = cv2.resize(noise, (256, 256), interpolation=cv2.INTER_CUBIC)
        mask = np.zeros((MASK_SIDE, MASK_SIDE), np.uint8)
        cv2.ellipse(mask, (256, 290), (120, 130), 0, 0, 360, 1, -1)  # about what `jaw` replaces
        self._mask = np.packbits(mask)

    def warm_up(self) -> None:
        """Nothing to do."""

    def encode(self, prepared: PreparedBlock, options: object, check: Check = go_on) -> AvatarBlock:
        count = len(prepared.crops)
        masks = np.broadcast_to(self._mask, (count, len(self._mask)))
        return AvatarBlock(prepared.block, prepared.faces, prepared.crops, masks)

    def generate(
        self,
        avatar: AvatarBlock,
        speech: Speech,
        segment: Segment,
        options: object,
        check: Check = go_on,
    ) -> DrawnFaces:
        count = sum(map(len, avatar.rows(segment)))
        faces = np.broadcast_to(self._face, (count, *self._face.shape))
        return DrawnFaces(segment, faces, np.ones(count, np.float32))

    def held_memory_mib(self) -> None:
        return None

    def peak_memory_mib(self) -> None:
        """Nothing runs on a GPU."""


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float


def timed(work: Callable[[], object]) -> Cost:
    """Return what `work` costs this process and its children that have ended."""
    cpu, wall = cpu_seconds(), time.monotonic()
    work()
    return Cost(time.monotonic() - wall, cpu_seconds() - cpu)


def cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def transcode(
    video: Path, speech: Path, folder: Path, options: EncodeOptions, threads: int, frames: int
) -> None:
    """Decode and encode as many frames as the job has, and its sound; nothing else."""
    source = probe_video(video, MediaLimits(), folder)
    picture = fit_picture(source, FrameOptions(), ())
    with PieceEncoder(picture, source.fps, options, threads=threads) as encoder:
        for frame in read_frames(source, picture, 0, frames):
            encoder.add(frame)
        piece = encoder.finish()
    track = folder / "alone.m4a"
    sound = ("-c:a", "aac", "-b:a", f"{options.audio_bitrate_kbps}k", "-ar", "48000")
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", speech, *sound, track], check=True)
    stitch([piece], track, folder / "alone.mp4", picture, source.fps)


def known_faces(video: Path, folder: Path) -> list[Landmarks | None]:
    from musetalk_pipeline.pixels.colour import BgrFrames

    source = probe_video(video, MediaLimits(), folder)
    picture = fit_picture(source, FrameOptions(), ())
    detector = make_detector("mesh")
    found: list[Landmarks | None] = []
    for frame in read_frames(source, picture, 0, source.n_frames):
        found += detector.detect(BgrFrames([frame], picture))
    return found


def measure(
    size: str, seconds: int, preset: str, rounds: int, footage: Path | None
) -> dict[str, object]:
    threads = len(os.sched_getaffinity(0))
    options = JobOptions(encode=EncodeOptions(preset=preset))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video, speech = footage or folder / "video.mp4", folder / "speech.wav"
        if footage is None:
            make_clip(video, *SIZES[size], seconds * 25)
        make_speech(speech, seconds)
        found = known_faces(video, folder)

        source = probe_video(video, MediaLimits(), folder)
        frames = count_output_frames(seconds * 16_000, source.fps)
        if frames > source.n_frames:
            raise SystemExit(f"{video} is shorter than {seconds} s")

        def job() -> None:
            tools = Tools(KnownFaces(found), KnownPictures(), make_audio_encoder("warp"), threads)
            run(video, speech, folder / "out.mp4", options, tools)

        def alone() -> None:
            transcode(video, speech, folder, options.encode, threads, frames)

        jobs, bounds = [], []
        for _ in range(rounds):
            bounds.append(timed(alone))
            jobs.append(timed(job))
    bound = Cost(min(c.wall_s for c in bounds), min(c.cpu_s for c in bounds))
    whole = Cost(min(c.wall_s for c in jobs), min(c.cpu_s for c in jobs))
    return {
        "size": size,
        "seconds": seconds,
        "preset": preset,
        "rounds": rounds,
        "job": asdict(whole),
        "decode_and_encode": asdict(bound),
        "wall_ratio": whole.wall_s / bound.wall_s,
        "cpu_ratio": whole.cpu_s / bound.cpu_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--video", type=Path, help="footage of yours instead of a made clip")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rows = []
    for size in args.sizes if args.video is None else ["footage"]:
        row = measure(size, args.seconds, args.preset, args.rounds, args.video)
        rows.append(row)
        job, bound = row["job"], row["decode_and_encode"]
        assert isinstance(job, dict) and isinstance(bound, dict)
        print(
            f"{size}: job {job['wall_s']:.2f} s wall {job['cpu_s']:.2f} s CPU; decode and encode "
            f"alone {bound['wall_s']:.2f} s wall {bound['cpu_s']:.2f} s CPU; ratio "
            f"{row['wall_ratio']:.2f} wall {row['cpu_ratio']:.2f} CPU (goal {GOAL})",
            flush=True,
        )
    cores = len(os.sched_getaffinity(0))
    machine = f"{cores} cores {platform.machine()}, no GPU used"
    when = datetime.now(UTC).date().isoformat()
    if args.video is None:
        RESULT.write_text(
            json.dumps({"date": when, "machine": machine, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
