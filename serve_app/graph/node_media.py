"""A job's media on the node that works on it.

    fetch (any node) ─► open (any node) ─► here (every call of a stage, any node)

`fetch` downloads both files into the attempt's scratch folder and stores their digests next to
them; it needs no thread, because it only waits. `open` checks the files and plans the job. Replicas
on the same node use the same files. On another node they are fetched and checked again, once per
node: the first replica there stores what it found next to them, and every replica keeps it.
"""

import asyncio
import dataclasses
import fcntl
import json
import logging
import os
import pickle
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import ray

from musetalk_pipeline.artifacts import SourceVideo, SpeechAudio
from musetalk_pipeline.cost import Measured, StageCost
from musetalk_pipeline.errors import InputName, PipelineError, StageFailed, at_fault
from musetalk_pipeline.faces import LandmarkDetector
from musetalk_pipeline.files import replacing
from musetalk_pipeline.job_media import Digests, JobFiles, open_media
from musetalk_pipeline.measure import JobSize, KeptBlocks, count_drawn, measure_job
from musetalk_pipeline.media.shared_readers import ReaderOf
from musetalk_pipeline.media.speech_audio import make_track
from musetalk_pipeline.stages import BlockSize, OpenJob, open_job
from musetalk_pipeline.survey import KnownSurveys
from serve_app.config.environment import Environment
from serve_app.config.settings import AppArgs
from serve_app.contract.requests import KEPT_VIDEO, UPLOAD, is_upload
from serve_app.graph.builders import build_scratch, build_shelf, uploads_folder
from serve_app.graph.ingress_uploads import ReadPiece, copy_upload, read_from_ingress
from serve_app.graph.inside_media import expired_upload, fetch_kept_video, make_silence
from serve_app.graph.stage_threads import StageThreads
from serve_app.graph.transfers import Attempt, Opened
from serve_app.inputs.download_body import DownloadLimits
from serve_app.inputs.downloads import disk_failed, download
from serve_app.net.addresses import AddressPolicy

logger = logging.getLogger(__name__)

VIDEO, AUDIO, DIGESTS, CHECKED, LOCK = "video", "audio", "digests.json", "checked.pickle", "lock"
TRACK_LOCK = "track.lock"
# Longer sound is encoded beside the first segments. A process of its own costs as much as this.
TRACK_WITHIN_S = 5.0
LOCK_POLL_S = 0.05
MAX_CHECKED = 64  # attempts of other nodes whose media a replica keeps in mind


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedMedia:
    """A job's source and sound as they are on this node."""

    source: SourceVideo
    audio: SpeechAudio


class NodeMedia:
    """Media files of this node's attempts, shared by its replicas through the scratch folder.

    `node_id`: this node's name; None takes Ray's. `read_upload`: reads the uploads that are on
    another node.
    """

    def __init__(
        self,
        args: AppArgs,
        env: Environment,
        node_id: str | None = None,
        read_upload: ReadPiece = read_from_ingress,
    ) -> None:
        self.scratch = build_scratch(args, env)
        self.node_id = node_id or ray.get_runtime_context().get_node_id()
        max_mb = env.max_file_mb or args.inputs.max_file_mb
        inputs = args.inputs.model_copy(update={"max_file_mb": max_mb})
        self._limits = inputs.limits()
        self._download_limits = inputs.download_limits()
        self._policy = AddressPolicy(frozenset([*inputs.allowed_hosts, *env.allowed_hosts]))
        self._folders = [*inputs.allowed_folders, *env.allowed_folders]
        self._wait_s = inputs.download_timeout_s
        self._block_size = BlockSize(args.driver.block_s)
        self._shelf = build_shelf(args, env)
        self._uploads, self._read_upload = uploads_folder(args, env), read_upload
        # Further ones wait here, so that a thread is left for the first segments of jobs that are
        # open. Many jobs that begin at once would otherwise all begin late.
        self._opening = asyncio.Semaphore(args.preprocessor.threads)
        self._checked: OrderedDict[str, CheckedMedia] = OrderedDict()

    async def fetch(self, attempt: Attempt) -> Measured[Digests]:
        """Download a job's media to this node.

        Raises:
            MediaError: they cannot be fetched. `input` names the one at fault.
        """
        folder, started = self.scratch.folder(attempt.attempt_id), time.monotonic()
        with _spending("download"):
            digests = await self._files(attempt, folder)
        cost = StageCost("download", time.monotonic() - started, frames=0)
        return Measured(digests, (cost,))

    async def open(
        self,
        attempt: Attempt,
        fetched: Measured[Digests],
        detector: LandmarkDetector,
        threads: StageThreads,
        known_surveys: KnownSurveys | None = None,
        read_for: ReaderOf | None = None,
    ) -> Measured[Opened]:
        """Check a job's media and plan its frames. `known_surveys`, `read_for`: see `open_job`.

        Raises:
            MediaError: they cannot be used.
        """
        folder = self.scratch.folder(attempt.attempt_id)
        digests = fetched.value
        _require_same(await self._files(attempt, folder), digests)
        async with self._opening:
            started = time.monotonic()
            with _spending("validation", fetched.costs):
                job, drawn = await threads.run_cancellable(
                    lambda check: _with_drawn(
                        open_job(
                            _files_of(attempt, folder, digests),
                            folder,
                            attempt.options,
                            self._limits,
                            detector,
                            block_size=self._block_size,
                            known_surveys=known_surveys,
                            read_for=read_for,
                            follows=not attempt.is_preview,
                            check=check,
                        )
                    )
                )
            cost = StageCost("validation", time.monotonic() - started, frames=job.followed)
        if attempt.is_avatar:
            job, drawn = dataclasses.replace(job, plan=job.plan.played_once()), 0
        opened = Opened(attempt, self.node_id, job, drawn=drawn)
        return Measured(opened, (*fetched.costs, cost))

    async def measure(
        self,
        attempt: Attempt,
        fetched: Measured[Digests],
        threads: StageThreads,
        known_surveys: KnownSurveys | None = None,
        kept_blocks: KeptBlocks = lambda job: (),
    ) -> JobSize:
        """Check a job's media, and return how large its output will be. `known_surveys`,
        `kept_blocks`: see `measure_job`.

        Raises:
            MediaError: they cannot be used.
        """
        folder = self.scratch.folder(attempt.attempt_id)
        _require_same(await self._files(attempt, folder), fetched.value)
        async with self._opening:
            return await threads.run(
                measure_job,
                _files_of(attempt, folder, fetched.value),
                folder,
                attempt.options,
                self._limits,
                block_size=self._block_size,
                known_surveys=known_surveys,
                kept_blocks=kept_blocks,
            )

    async def here(self, opened: Opened, threads: StageThreads) -> OpenJob:
        """Return the opened job with paths that are valid on this node.

        Raises:
            StageFailed: the media have changed since the attempt began.
            CancelledError: the attempt is over. Its caller has cancelled the call and gone on, and
                Serve logs every other error with a trace. To a caller that does wait it is the same
                as a lost replica.
        """
        attempt, job = opened.attempt, opened.job
        if opened.node_id == self.node_id:
            if not self.scratch.touch(attempt.attempt_id):
                raise asyncio.CancelledError("The attempt is over, and its files are gone.")
            return job
        checked = self._checked.get(attempt.attempt_id)
        # A folder that is gone was released, or removed by a cleaner; then nothing here is valid.
        if checked is None or not self.scratch.touch(attempt.attempt_id):
            checked = await self._check_once(opened, threads)
            self._checked[attempt.attempt_id] = checked
            while len(self._checked) > MAX_CHECKED:
                self._checked.popitem(last=False)
        return dataclasses.replace(job, source=checked.source, audio=checked.audio)

    async def make_track(self, attempt: Attempt, audio: SpeechAudio) -> None:
        """Have the sound of a job encoded on this node, once.

        Raises:
            InvalidAudio, DeadlineExceeded: see `speech_audio.make_track`.
            OSError: the files have been removed, because the attempt is over.
        """
        kbps = attempt.options.encode.audio_bitrate_kbps
        async with _locked(audio.track_path.with_name(TRACK_LOCK), self._wait_s):
            await asyncio.to_thread(make_track, audio, self._limits, kbps)

    async def _check_once(self, opened: Opened, threads: StageThreads) -> CheckedMedia:
        """Return the media of an attempt, checked now unless another replica of this node has."""
        attempt, job = opened.attempt, opened.job
        folder = self.scratch.folder(attempt.attempt_id)
        digests = await self._files(attempt, folder)
        _require_same(digests, job.digests)
        async with _locked(folder / LOCK, self._wait_s):
            checked = await asyncio.to_thread(_read_checked, folder / CHECKED)
            if checked is None:
                files = _files_of(attempt, folder, digests)
                checked = await threads.run(self._check, job, files, folder)
                await asyncio.to_thread(_write_checked, folder / CHECKED, checked)
            return checked

    def _check(self, job: OpenJob, files: JobFiles, folder: Path) -> CheckedMedia:
        """Check the files, and make what the stages read in addition to them."""
        media = open_media(files, folder, job.options, self._limits)
        return CheckedMedia(media.source, media.audio)

    async def _files(self, attempt: Attempt, folder: Path) -> Digests:
        """Return the digests of the files in `folder`, which are fetched now unless they exist."""
        async with _locked(folder / LOCK, self._wait_s):
            kept = _read_digests(folder / DIGESTS)
            if kept is None:
                kept = await self._fetch_both(attempt, folder)
                _write_digests(folder / DIGESTS, kept)
            return kept

    async def _fetch_both(self, attempt: Attempt, folder: Path) -> Digests:
        sources = attempt.sources
        if attempt.is_avatar:
            digest = await self._fetch("video", sources.video_url, folder / VIDEO)
            silence = await asyncio.to_thread(
                make_silence,
                sources.audio_url,
                folder / VIDEO,
                folder / AUDIO,
                attempt.options,
                self._limits,
            )
            return Digests(digest, silence)
        try:
            async with asyncio.TaskGroup() as tasks:
                video = tasks.create_task(self._fetch("video", sources.video_url, folder / VIDEO))
                audio = tasks.create_task(self._fetch("audio", sources.audio_url, folder / AUDIO))
                others = tasks.create_task(self._fetch_others(attempt, folder))
        except* Exception as group:
            # Several may have failed; the caller can act on the first.
            raise group.exceptions[0] from None
        return Digests(video.result(), audio.result(), others.result())

    async def _fetch_others(self, attempt: Attempt, folder: Path) -> tuple[str, ...]:
        """Download the sounds of segments, one after the other. Together they may be as large as
        one input.
        """
        digests, limits = [], self._download_limits
        for url, path in _others(attempt, folder).items():
            digests.append(await self._fetch("audio", url, path, limits))
            left = limits.max_bytes - path.stat().st_size
            limits = dataclasses.replace(limits, max_bytes=left)
        return tuple(digests)

    async def _fetch(
        self, name: InputName, url: str, target: Path, limits: DownloadLimits | None = None
    ) -> str:
        with at_fault(name):
            if url.startswith(KEPT_VIDEO):
                return await asyncio.to_thread(fetch_kept_video, self._shelf, url, target)
            if is_upload(url):
                return await self._fetch_upload(url.removeprefix(UPLOAD), target)
            downloaded = await download(
                url,
                target,
                policy=self._policy,
                limits=limits or self._download_limits,
                allowed_folders=self._folders,
            )
        return downloaded.sha256

    async def _fetch_upload(self, upload_id: str, target: Path) -> str:
        """Get an upload, from this node if the ingress is here, else from the ingress. Whose it is
        was checked with the request.
        """
        try:
            digest = await asyncio.to_thread(self._uploads.fetch, upload_id, target)
            if digest is None:
                limits = dataclasses.replace(self._download_limits, min_bytes=0)
                digest = await copy_upload(self._read_upload, upload_id, target, limits)
        except OSError as exc:
            raise disk_failed(exc) from exc
        if digest is None:
            raise expired_upload()
        return digest


def preprocessor_threads(args: AppArgs) -> int:
    """Return how many threads a Preprocessor has: one more than it opens jobs at a time."""
    return args.preprocessor.threads + 1


def _with_drawn(job: OpenJob) -> tuple[OpenJob, int]:
    """Return a job, and in how many of its frames the mouth is expected to show."""
    return job, count_drawn(job)


def _others(attempt: Attempt, folder: Path) -> dict[str, Path]:
    """Return where the sounds of segments lie, by their addresses."""
    urls = attempt.options.time.urls
    return {url: folder / f"{AUDIO}{number}" for number, url in enumerate(urls, 2)}


def _files_of(attempt: Attempt, folder: Path, digests: Digests) -> JobFiles:
    others = _others(attempt, folder)
    return JobFiles(folder / VIDEO, folder / AUDIO, digests, TRACK_WITHIN_S, others)


def _require_same(found: Digests, expected: Digests) -> None:
    if found != expected:
        raise StageFailed("The media changed while the job was running.")


def _read_digests(path: Path) -> Digests | None:
    try:
        stored = json.loads(path.read_text())
        return Digests(stored["video"], stored["audio"], tuple(stored["others"]))
    except FileNotFoundError:
        return None


def _write_digests(path: Path, digests: Digests) -> None:
    """Write the digests. This comes last, so if they exist, both files are complete."""
    with replacing(path) as part:
        part.write_text(json.dumps(dataclasses.asdict(digests)))


def _read_checked(path: Path) -> CheckedMedia | None:
    # The scratch folder belongs to this user alone (scratch.py), and so does what lies in it.
    try:
        checked = pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    assert isinstance(checked, CheckedMedia)
    return checked


def _write_checked(path: Path, checked: CheckedMedia) -> None:
    with replacing(path) as part:
        part.write_bytes(pickle.dumps(checked))


@contextmanager
def _spending(stage: str, costs: tuple[StageCost, ...] = ()) -> Iterator[None]:
    """Give an error that ends a stage the seconds spent on the job by then. `costs`: so far."""
    started = time.monotonic()
    try:
        yield
    except PipelineError as error:
        spent = {cost.published_stage: cost.seconds for cost in costs}
        error.stage_seconds = {**spent, stage: time.monotonic() - started}
        raise


@asynccontextmanager
async def _locked(path: Path, wait_s: float) -> AsyncIterator[None]:
    """Hold an exclusive lock on `path`; the kernel frees it if its holder dies."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        async with asyncio.timeout(wait_s):
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(handle)
