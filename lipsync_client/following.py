"""A job until it ends: its events, across connections that break."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from lipsync_client.calls import get_batch, get_job
from lipsync_client.effects import ANSWER_S, Answer, Emit, Flow, Open, Pause, Read, Request
from lipsync_client.errors import LipsyncError, Unreachable, WaitTimedOut
from lipsync_client.exchange import Retries, Trying, error_of, may_pass
from lipsync_client.paths import job_path
from lipsync_client.sse import Event, EventParser
from lipsync_client.values import Batch, Job

MOST_ERROR_BYTES = 256 * 1024
LEAST_TIMEOUT_S = 1.0
FIRST_POLL_S, LONGEST_POLL_S = 1.0, 10.0


class Deadline:
    """The end of a wait. `timeout_s`: None waits without end."""

    def __init__(self, what: str, timeout_s: float | None) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self.at = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the seconds that are left.

        Raises:
            WaitTimedOut: there are none.
        """
        if self.at is None or self._timeout_s is None:
            return float("inf")
        left = self.at - time.monotonic()
        if left <= 0:
            raise WaitTimedOut(self._what, self._timeout_s)
        return left


def follow(job_id: str, retries: Retries, timeout_s: float | None = None) -> Flow[Job]:
    """Emit a job as it is, then at each change until it ends, and return its end.

    A connection that breaks is opened again, and continues after the last event. A new reader gets
    the earlier changes of the job too; those from before its first state are left out.

    Raises:
        WaitTimedOut: it has not ended within `timeout_s`.
        ApiError: there is no such job.
        Unreachable: the server has not answered for longer than `retries` allow.
    """
    deadline = Deadline(f"The job {job_id}", timeout_s)
    job: Job | None = yield from get_job(job_id, retries)  # without it, nothing is waited for
    patient = replace(retries, for_s=retries.following_s)
    trying, stream = Trying(patient, deadline.at), _Stream(job_id)
    while True:
        if job is not None:
            stream.shown = job
            yield Emit(job)
            if job.has_ended:
                return job
        try:
            job = yield from stream.read(deadline, trying)
        except LipsyncError as error:
            deadline.left_s()  # what broke off at the deadline is no fault of the server
            if not (isinstance(error, Unreachable) or may_pass(error)):
                raise
            yield from trying.after(error)
            job = None
        if job is None:  # it may have ended in the meantime, and a proxy may hold back events
            job = yield from get_job(job_id, patient)


class _Stream:
    """The events of one job, over as many connections as it takes.

    Attributes:
        shown: the newest state that was emitted.
    """

    def __init__(self, job_id: str) -> None:
        self.shown: Job | None = None
        self._path = f"{job_path(job_id)}/events"
        self._last_id: str | None = None

    def read(self, deadline: Deadline, trying: Trying) -> Flow[Job | None]:
        """Read one connection to its end; return the job if that was the end of the job."""
        timeout_s = max(LEAST_TIMEOUT_S, min(ANSWER_S, deadline.left_s()))
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._last_id is not None:
            headers["Last-Event-ID"] = self._last_id
        request = Request("GET", self._path, headers, timeout_s=timeout_s)
        answer: Answer = yield Open(request)
        if not answer.is_success:
            raise error_of((yield from whole(answer)))
        parser = EventParser()
        while (piece := (yield Read())) is not None:
            trying.succeeded()
            has_changed = False
            for event in parser.feed(piece):
                job = self._job_of(event)
                has_changed = has_changed or job is None
                if job is not None:
                    if event.name == "end":
                        return job
                    if not self._is_older(job):
                        self.shown = job
                        yield Emit(job)
            if has_changed or deadline.left_s() < timeout_s / 2:
                return None  # the job is read, and the next connection may be quiet for less long
        raise Unreachable("The stream of events broke off before the job ended.")

    def _is_older(self, job: Job) -> bool:
        shown = self.shown
        if shown is None or shown.updated_at is None or job.updated_at is None:
            return False
        # The times are in ISO 8601, all in UTC. Phases that were short are stored at the same time.
        return (job.updated_at, _fraction(job)) < (shown.updated_at, _fraction(shown))

    def _job_of(self, event: Event) -> Job | None:
        """Return the job that an event contains. None: it only says that the job has changed, as
        the events of an orchestrator do.
        """
        if event.id is not None:
            self._last_id = event.id
        body = Answer(200, {}, event.data.encode()).json()
        return Job.read(body) if isinstance(body, Mapping) and "status" in body else None


def _fraction(job: Job) -> float:
    return 0.0 if job.progress is None else job.progress.fraction


def whole(answer: Answer) -> Flow[Answer]:
    """Return an open answer with its body, which is an error's and short."""
    body = b""
    with suppress(Unreachable):
        while len(body) < MOST_ERROR_BYTES and (piece := (yield Read())) is not None:
            body += piece
    return Answer(answer.status, answer.headers, body)


def follow_batch(batch_id: str, retries: Retries, timeout_s: float | None = None) -> Flow[Batch]:
    """Emit a batch now and then until all of its jobs have ended, and return its end.

    Raises:
        WaitTimedOut: that took longer than `timeout_s`.
    """
    deadline, pause_s = Deadline(f"The batch {batch_id}", timeout_s), FIRST_POLL_S
    while True:
        batch = yield from get_batch(batch_id, retries)
        yield Emit(batch)
        if batch.has_ended:
            return batch
        yield Pause(min(pause_s, deadline.left_s()))
        pause_s = min(LONGEST_POLL_S, 1.5 * pause_s)
