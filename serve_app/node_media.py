"""A job's media on the node that works on it.

The Preprocessor replica that opens a job downloads and checks its media into the attempt's scratch
folder. Replicas on the same node use those files. A replica on another node fetches them again,
once per node, and makes sure that they are the same.
"""

import asyncio
import dataclasses
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import ray

from musetalk_pipeline.errors import PipelineError, StageFailed
from musetalk_pipeline.faces import LandmarkDetector
from musetalk_pipeline.probe import probe_video
from musetalk_pipeline.soundtrack import open_audio
from musetalk_pipeline.stages import OpenJob, open_job
from serve_app.addresses import AddressPolicy
from serve_app.downloads import DownloadLimits, download
from serve_app.schemas import JobRequest
from serve_app.scratch import Scratch
from serve_app.settings import AppArgs, Environment, make_folders
from serve_app.threads import Worker
from serve_app.transfers import Assignment, Opened

logger = logging.getLogger(__name__)

VIDEO, AUDIO, READY, LOCK = "video", "audio", "ready", "lock"
LOCK_LOOK_S = 0.05


class NodeMedia:
    """Media files of this node's attempts, shared by its replicas through the scratch folder."""

    def __init__(self, args: AppArgs, env: Environment) -> None:
        self.scratch = Scratch(make_folders(args, env).scratch)
        self.node_id = ray.get_runtime_context().get_node_id()
        max_mb = env.max_file_mb or args.inputs.max_file_mb
        inputs = args.inputs.model_copy(update={"max_file_mb": max_mb})
        self._limits = inputs.limits()
        self._download_limits = DownloadLimits(
            max_bytes=self._limits.max_bytes, total_s=inputs.download_timeout_s
        )
        self._policy = AddressPolicy(frozenset([*inputs.allowed_hosts, *env.allowed_hosts]))
        self._folders = [*inputs.allowed_folders, *env.allowed_folders]
        self._wait_s = inputs.download_timeout_s

    async def open(self, work: Assignment, detector: LandmarkDetector, threads: Worker) -> Opened:
        """Download and check a job's media and plan its frames.

        Raises:
            MediaError: they cannot be used.
        """
        folder = self.scratch.folder(work.attempt_id)
        seconds: dict[str, float] = {}
        with _timed("download", seconds):
            await self._fetch(work.request, folder)
        with _timed("validation", seconds):
            job: OpenJob = await threads.run(
                open_job,
                folder / VIDEO,
                folder / AUDIO,
                folder,
                work.options,
                self._limits,
                detector,
            )
        return Opened(work, self.node_id, job, seconds)

    async def here(self, opened: Opened, threads: Worker) -> OpenJob:
        """Return the opened job with paths that are valid on this node.

        Raises:
            StageFailed: the attempt is over, or the media have changed since it began.
        """
        attempt_id = opened.work.attempt_id
        if opened.node_id == self.node_id:
            if not self.scratch.touch(attempt_id):
                raise StageFailed("The attempt is over: its files are gone.")
            return opened.job
        folder = self.scratch.folder(attempt_id)
        async with _locked(folder / LOCK, self._wait_s):
            if not (folder / READY).exists():
                await self._fetch(opened.work.request, folder)
            source = await threads.run(probe_video, folder / VIDEO, self._limits, folder)
            kbps = opened.work.options.encode.audio_bitrate_kbps
            audio = await threads.run(open_audio, folder / AUDIO, folder, self._limits, kbps)
            (folder / READY).touch()
        same = (opened.job.source.sha256, opened.job.audio.sha256)
        if (source.sha256, audio.sha256) != same:
            raise StageFailed("The media changed while the job was running.")
        return dataclasses.replace(opened.job, source=source, audio=audio)

    async def _fetch(self, request: JobRequest, folder: Path) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for url, name in ((request.video_url, VIDEO), (request.audio_url, AUDIO)):
                    tasks.create_task(self._download(url, folder / name))
        except* Exception as group:
            # Both may have failed; the first is what the caller can act on.
            raise group.exceptions[0] from None

    async def _download(self, url: str, target: Path) -> None:
        await download(
            url,
            target,
            policy=self._policy,
            limits=self._download_limits,
            allowed_folders=self._folders,
        )


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Count a stage's seconds. An error that ends it takes all seconds so far along."""
    started = time.monotonic()
    try:
        yield
    except PipelineError as error:
        error.stage_seconds = {**seconds, stage: time.monotonic() - started}
        raise
    seconds[stage] = time.monotonic() - started


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
                    await asyncio.sleep(LOCK_LOOK_S)
        yield
    finally:
        os.close(handle)
