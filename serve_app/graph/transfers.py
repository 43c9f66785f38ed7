"""The values that travel between the deployments, in addition to those of the pipeline itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.measure import JobSize, first_frames
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.receipts.cost_sum import JobWork
from musetalk_pipeline.receipts.receipt import NO_PRICES, Prices
from musetalk_pipeline.stages import OpenJob
from orchestrator.messages import OutputAddresses
from serve_app.contract.requests import JobRequest
from serve_app.estimates.job_length import JobLength


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt at one job, as the ingress drives it; the stages get an `Attempt`.

    `attempt_id` names its scratch folder; it is made here and never comes from a caller.
    `lost_attempt_id`: the attempt before, if its lease expired; its scratch may still exist.
    `queue_job_id`: the id of the job in Salad's queue, for the sidecar. `origin`: how the job was
    submitted, `sync`, `async` or `claimed`; it decides the job's share of the replicas. `output`
    returns where the outputs go, if not into the store of this application; a later claim of the
    job changes that. `number`: that of the attempt, among all of the job.
    """

    attempt_id: str
    lost_attempt_id: str | None
    job_id: str
    attempt: int
    request: JobRequest
    options: JobOptions
    queue_job_id: str | None = None
    origin: str = "sync"
    output: Callable[[], OutputAddresses | None] = lambda: None
    number: int = 1


@dataclass(frozen=True, slots=True)
class Sources:
    """The addresses of a job's media. They may be signed, so they are left out of `repr`.

    They travel to every stage, because every stage may run on a node that does not have the files
    yet. Only node_media.py reads them.
    """

    video_url: str = field(repr=False)
    audio_url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the stages are given of an attempt.

    `aspect_ratio`, `resolution`: as the caller wrote them, for the sidecar. `is_avatar`: only the
    avatar is made, because there is no sound. `is_preview`: one frame is made.
    """

    attempt_id: str
    job_id: str
    options: JobOptions
    sources: Sources
    aspect_ratio: str | None
    resolution: str | None
    queue_job_id: str | None
    origin: str = "sync"
    is_avatar: bool = False
    output: OutputAddresses | None = None  # set for the finish
    is_preview: bool = False

    @classmethod
    def of(cls, assignment: Assignment) -> "Attempt":
        """Return what the stages need of an assignment."""
        request = assignment.request
        sources = Sources(request.video_url, request.audio_url)
        return cls(
            assignment.attempt_id,
            assignment.job_id,
            assignment.options,
            sources,
            request.aspect_ratio,
            request.resolution,
            assignment.queue_job_id,
            assignment.origin,
            request.is_avatar,
        )


@dataclass(frozen=True, slots=True)
class KnownAvatar:
    """The avatar of a job: its identity, and the files of the blocks that could be loaded when it
    was opened, by the index of the block.
    """

    avatar_id: str
    stored: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Opened:
    """A job whose checked media are in the attempt's scratch folder on the node `node_id`.

    `avatar`: None if avatars are not kept here. `drawn`: in how many output frames the mouth is
    expected to show; None if in all that draw on a block.
    """

    attempt: Attempt
    node_id: str
    job: OpenJob
    avatar: KnownAvatar | None = None
    drawn: int | None = None


def length_of(opened: Opened) -> JobLength:
    """Return how much there is to do of an opened job, for a forecast."""
    job, stored = opened.job, () if opened.avatar is None else opened.avatar.stored
    picture, plan = job.picture, job.plan
    kept = sum(len(block) for block in plan.blocks if block.index in stored)
    to_draw = 0 if opened.attempt.is_avatar else plan.n_drawn
    return JobLength(
        plan.n_output,
        first_frames(plan),
        picture.width * picture.height,
        composed=0 if opened.attempt.is_avatar else plan.n_output,
        to_draw=to_draw,
        drawn=to_draw if opened.drawn is None else opened.drawn,
        prepared=len(plan.prepared) - kept,
        kept=kept,
        followed=job.followed,
    )


def length_of_output(size: JobSize) -> JobLength:
    """Return how much there is to do of a job that has only been measured."""
    return JobLength(
        size.frames,
        size.first_frames,
        size.width * size.height,
        composed=size.frames,
        to_draw=size.to_draw,
        drawn=size.drawn,
        prepared=size.avatar - size.kept,
        kept=size.kept,
        followed=size.followed,
    )


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the Finisher is told of an attempt: its costs and wall seconds so far, without the wait
    for a place, and the prices.
    """

    work: JobWork
    elapsed_s: float
    prices: Prices = NO_PRICES


@dataclass(frozen=True, slots=True)
class Finished:
    """A stored output. `metrics` is what docs/protocol.md §1 puts under that name. `warnings` are
    those of the run itself.
    """

    output_url: str
    metrics: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreviewPicture:
    """One composited frame as PNG, the face box that was redrawn, and which source frame it is.

    `faces`: the boxes of all faces that could be chosen in that frame, in pixels of the displayed
    source, the largest first.
    """

    png: bytes
    box: Box
    source_frame: int
    faces: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """What draws and finds faces on a replica, for `/health`, logs, responses and sidecars."""

    engine: str
    model_version: str
    landmarks: str
    device: str
    gpu_class: str
    batch_size: int  # frames in one pass; 1 if the engine draws one by one
