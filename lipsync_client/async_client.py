# Made by scripts/async_client.py from client.py.
"""The client for programs with asyncio."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

from lipsync_client import calls
from lipsync_client.client import succeeded
from lipsync_client.downloading import download
from lipsync_client.drivers import AsyncDriver, Server
from lipsync_client.exchange import Retries
from lipsync_client.following import follow, follow_batch
from lipsync_client.inputs import JobFields, NewJob, Source
from lipsync_client.uploading import upload_file
from lipsync_client.values import Avatar, Batch, Estimate, Job, Preview, Transfer, Upload

OnTransfer = Callable[[Transfer], object]


class AsyncLipsyncClient:
    """A lip-sync server, as its callers use it.

        async with AsyncLipsyncClient("https://lipsync.example.com", "the key") as client:
            job = await client.submit("face.mp4", "speech.wav", resolution="720p")
            await client.wait(job.id, lambda job: print(job.progress))
            await client.download(job.id, "result.mp4")

    Files are uploaded, addresses are passed on. Every method raises `LipsyncError` (errors.py), and
    tries again what may pass for as long as `retries` allow. Tasks may share a client.
    `LipsyncClient` has the same methods.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        retries: Retries = Retries(),  # noqa: B008  (frozen)
    ) -> None:
        """Without `server`, LIPSYNC_SERVER names it, or it is on this machine. Without `api_key`,
        LIPSYNC_API_KEY or INGRESS_API_KEY is the key.

        Raises:
            ValueError: the address or the key cannot be one.
        """
        self._driver = AsyncDriver(Server.of(server, api_key))
        self._retries = retries

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._driver.server.base!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._driver.aclose()

    # Files -----------------------------------------------------------------------------------

    async def upload(
        self, path: str | os.PathLike[str], on_progress: OnTransfer | None = None
    ) -> Upload:
        """Upload a file, for jobs that may use it until `expires_at`."""
        return await self._driver.run(upload_file(Path(path), self._retries), on_progress)

    async def download(
        self,
        job_id: str,
        target: str | os.PathLike[str],
        on_progress: OnTransfer | None = None,
        *,
        may_overwrite: bool = False,
    ) -> Path:
        """Fetch the result of a job; a download that broke off is continued.

        Raises:
            FileExistsError: `target` exists, and `may_overwrite` is False.
            JobFailed, NotFinished: there is no result.
        """
        flow = download(job_id, Path(target), self._retries, may_overwrite=may_overwrite)
        return await self._driver.run(flow, on_progress)

    # Jobs ------------------------------------------------------------------------------------

    async def submit(
        self,
        video: Source | None,
        audio: Source,
        *,
        idempotency_key: str | None = None,
        on_progress: OnTransfer | None = None,
        **fields: Unpack[JobFields],
    ) -> Job:
        """Submit a job. `video` is None with `avatar_id`. `on_progress`: of the uploads."""
        flow = calls.submit(NewJob(video, audio, **fields), self._retries, idempotency_key)
        return await self._driver.run(flow, on_progress)

    async def get(self, job_id: str) -> Job:
        """Return a job."""
        return await self._driver.run(calls.get_job(job_id, self._retries))

    def events(self, job_id: str, *, timeout_s: float | None = None) -> AsyncIterator[Job]:
        """Yield a job at each change, the last time when it has ended.

        Raises:
            WaitTimedOut: it has not ended within `timeout_s`.
        """
        return self._driver.stream(follow(job_id, self._retries, timeout_s))

    async def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], object] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Job:
        """Return a job that has succeeded, when it has.

        Raises:
            JobFailed: it has failed, or was cancelled.
            WaitTimedOut: it has not ended within `timeout_s`.
        """
        return succeeded(
            await self._driver.run(follow(job_id, self._retries, timeout_s), on_progress)
        )

    async def cancel(self, job_id: str) -> None:
        """Request the end of a job."""
        await self._driver.run(calls.cancel(job_id, self._retries))

    async def retry(self, job_id: str) -> Job:
        """Queue a job again that has failed or was cancelled."""
        return await self._driver.run(calls.retry(job_id, self._retries))

    def jobs(self, status: str | None = None, limit: int | None = None) -> AsyncIterator[Job]:
        """Yield jobs, newest first: those with `status`, at most `limit`."""
        return self._driver.stream(calls.list_jobs(status, limit, self._retries))

    async def estimate(
        self, video: Source | None, audio: Source, **fields: Unpack[JobFields]
    ) -> Estimate:
        """Return what a job would take, without running it."""
        return await self._driver.run(calls.estimate(NewJob(video, audio, **fields), self._retries))

    async def preview(
        self, video: Source | None, audio: Source, **fields: Unpack[JobFields]
    ) -> Preview:
        """Return one finished frame, to choose options by."""
        return await self._driver.run(calls.preview(NewJob(video, audio, **fields), self._retries))

    # Batches ---------------------------------------------------------------------------------

    async def submit_batch(
        self,
        jobs: Sequence[NewJob],
        *,
        webhook_url: str | None = None,
        metadata: dict[str, Any] | None = None,
        on_progress: OnTransfer | None = None,
    ) -> Batch:
        """Submit jobs together. A file that several of them name is uploaded once."""
        flow = calls.submit_batch(jobs, self._retries, webhook_url=webhook_url, metadata=metadata)
        return await self._driver.run(flow, on_progress)

    async def batch(self, batch_id: str) -> Batch:
        """Return a batch."""
        return await self._driver.run(calls.get_batch(batch_id, self._retries))

    async def wait_batch(
        self,
        batch_id: str,
        on_progress: Callable[[Batch], object] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Batch:
        """Return a batch when all of its jobs have ended, however that was."""
        return await self._driver.run(follow_batch(batch_id, self._retries, timeout_s), on_progress)

    async def cancel_batch(self, batch_id: str) -> None:
        """Request the end of every job of a batch that has not ended."""
        await self._driver.run(calls.cancel_batch(batch_id, self._retries))

    # Avatars ---------------------------------------------------------------------------------

    async def prepare_avatar(
        self, video: Source, duration_s: float | None = None, **fields: Unpack[JobFields]
    ) -> Job:
        """Prepare the avatar of a video; its id is in `metrics` when the job has succeeded."""
        options = NewJob(None, "", **fields)
        return await self._driver.run(
            calls.prepare_avatar(video, duration_s, options, self._retries)
        )

    async def avatars(self) -> tuple[Avatar, ...]:
        """Return the avatars that are kept."""
        return await self._driver.run(calls.list_avatars(self._retries))

    async def avatar(self, avatar_id: str) -> Avatar:
        """Return an avatar."""
        return await self._driver.run(calls.get_avatar(avatar_id, self._retries))

    async def delete_avatar(self, avatar_id: str) -> None:
        """Delete an avatar."""
        await self._driver.run(calls.delete_avatar(avatar_id, self._retries))
