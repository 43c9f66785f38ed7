"""The sections of the configuration: every key, its bounds, its default and its meaning.

`AppArgs` (settings.py) puts them together.
"""

import ipaddress
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from musetalk_pipeline.options import MediaLimits, Speedup
from serve_app.config.origins import origin_of
from serve_app.inputs.download_body import DownloadLimits
from serve_app.net.addresses import AddressPolicy
from serve_app.scheduling.pool_state import Policy


class Section(BaseModel):
    """A part of the configuration. Unknown keys are refused, and values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _require_room(replicas: int, max_replicas: int | None) -> None:
    if max_replicas is not None and max_replicas < replicas:
        raise ValueError("max_replicas is smaller than replicas")


class StageSettings(Section):
    """Replicas of one CPU stage."""

    replicas: int = Field(
        1, ge=1, le=64, description="The number of replicas at the start, and the least."
    )
    max_replicas: int | None = Field(
        None,
        ge=1,
        le=256,
        description="As many run while enough work waits. Without it, the number is fixed.",
    )
    num_cpus: float = Field(
        0.25, gt=0, le=64, description="The CPUs that Ray reserves for each replica."
    )
    threads: int = Field(
        2,
        ge=1,
        le=64,
        description="Worker threads, and so the calls that run concurrently. The Preprocessor has "
        "one more, which opens no jobs.",
    )
    label_selector: dict[str, str] = Field(
        default_factory=dict, description="The node labels that replicas need."
    )
    usd_per_hour: float = Field(
        0.0, ge=0, description="The price of one replica, for receipts. Its threads share it."
    )

    @model_validator(mode="after")
    def _bounds(self) -> "StageSettings":
        _require_room(self.replicas, self.max_replicas)
        return self


class PreprocessorSettings(StageSettings):
    """Replicas of the Preprocessor; `mmpose` and S3FD may run on a GPU there."""

    num_gpus: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The share of a GPU for mmpose and s3fd. With 0 they run on the CPU.",
    )


class PoolSettings(Section):
    """The Generator replicas of one GPU architecture, or of CPUs."""

    name: str = Field(description="A unique name. The deployment is called Generator-<name>.")
    arch: Literal["any", "turing", "ampere", "ada", "hopper", "blackwell"] = Field(
        "any",
        description="Replicas run on nodes labelled musetalk/arch=<arch>; with any, no label is "
        "needed.",
    )
    replicas: int = Field(
        1,
        ge=0,
        le=256,
        description="The number of replicas at the start, and the least. With 0, and max_replicas, "
        "they start when work waits.",
    )
    max_replicas: int | None = Field(
        None,
        ge=1,
        le=256,
        description="As many run while enough work waits. Without it, the number is fixed.",
    )
    num_cpus: float = Field(
        0.25, gt=0, le=64, description="The CPUs that Ray reserves for each replica."
    )
    num_gpus: float = Field(
        0.0, ge=0, le=1, description="The share of a GPU for each replica, and of its free memory."
    )
    device: str | None = Field(
        None, description="A torch device. Without it: cuda:0 if num_gpus is above 0, else cpu."
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="The networks' precision."
    )
    batch_size: int | None = Field(
        None, ge=1, le=256, description="Frames in one pass. Without it, free GPU memory decides."
    )
    threads: int = Field(1, ge=1, le=64, description="The CPU threads of the networks.")
    speedup: Speedup = Field(
        "none",
        description="A further GPU optimisation. compile needs a C compiler.",
    )
    usd_per_hour: float = Field(
        0.0, ge=0, description="The price of one replica. Pools are ordered by price and speed."
    )
    frames_per_s: float = Field(
        1.0, gt=0, description="The speed of one replica. Pools are ordered by price and speed."
    )

    @model_validator(mode="after")
    def _bounds(self) -> "PoolSettings":
        _require_room(self.replicas, self.max_replicas)
        if self.replicas == 0 and self.max_replicas is None:
            raise ValueError(
                "with `replicas: 0`, set `max_replicas`, so that replicas start when work waits; "
                "leave the pool out if it is never to run"
            )
        return self

    @model_validator(mode="after")
    def _name_is_plain(self) -> "PoolSettings":
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", self.name):
            raise ValueError(f"pool name {self.name!r}: use lower-case letters, digits and dashes")
        return self


class ScalingSettings(Section):
    """How the number of replicas follows the work, where `max_replicas` is set."""

    drain_s: float = Field(
        60.0,
        gt=0,
        description="Waiting work should be drawn in this time, once the replicas for it have "
        "loaded.",
    )
    idle_loads: float = Field(
        5.0,
        ge=1,
        description="A pool gives up replicas that were idle for this many of its load times,",
    )
    idle_s: float = Field(60.0, ge=1, description="and for this time at least.")
    load_s: float = Field(
        60.0, gt=0, description="The load time of a replica, until one has been measured."
    )
    job_frames: int = Field(
        250, ge=1, description="The frames of a job, until its files have been examined."
    )
    awaits_nodes: bool = Field(
        False,
        description="Set this where an autoscaler (of Ray's version 2) starts nodes with the "
        "labels of the pools. A pool without a node then awaits one.",
    )


class InputSettings(Section):
    """What may be fetched, and how large it may be."""

    allowed_folders: list[Path] = Field(
        default_factory=list, description="The folders that file:// inputs may come from."
    )
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Private hosts and networks that may be fetched from."
    )
    max_file_mb: int = Field(2000, ge=1, description="The largest input file.")
    max_duration_s: float = Field(3600.0, gt=0, description="The longest input.")
    max_pixels: int = Field(4096 * 2304, ge=4096, description="The most pixels in one frame.")
    max_side_px: int = Field(8192, ge=64, description="The longest side of a frame.")
    max_fps: float = Field(120.0, gt=0, description="The highest frame rate.")
    max_streams: int = Field(16, ge=1, description="The most streams in one file.")
    download_timeout_s: float = Field(
        600.0, gt=0, description="The time for all attempts at one file."
    )
    min_bytes_per_s: int = Field(
        65536,
        ge=0,
        description="Slower downloads are given up after a minute. With 0 they never are.",
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, entries: list[str]) -> list[str]:
        AddressPolicy(frozenset(entries))
        return entries

    def download_limits(self) -> DownloadLimits:
        """Return what one download may cost."""
        return DownloadLimits(
            max_bytes=self.max_file_mb * 1024 * 1024,
            total_s=self.download_timeout_s,
            min_bytes_per_s=self.min_bytes_per_s,
        )

    def limits(self) -> MediaLimits:
        """Return the limits for the media probe."""
        return MediaLimits(
            max_bytes=self.max_file_mb * 1024 * 1024,
            max_duration_s=self.max_duration_s,
            max_pixels=self.max_pixels,
            max_side_px=self.max_side_px,
            max_fps=self.max_fps,
            max_streams=self.max_streams,
        )


class DriverSettings(Section):
    """How one job is driven through the graph."""

    policy: Policy = Field(
        "soonest",
        description="`soonest`: the pool that finishes a segment first draws it, and of pools that "
        "are about as soon the cheapest. `cheapest`: the cheapest pool with a free replica.",
    )
    max_mb_in_flight: int | None = Field(
        None,
        ge=1,
        description="The memory for segments in flight, of all jobs. Without it, a tenth of the "
        "machine's. 1 MB is 10^6 bytes.",
    )
    no_replica_timeout_s: float = Field(
        900.0,
        gt=0,
        description="A job fails after no pool has had a running replica for this time.",
    )
    block_s: float = Field(
        2.0, gt=0, le=30, description="The longest block, in seconds of the source."
    )
    kept_blocks: int = Field(
        64, ge=1, description="How many encoded blocks of a job are kept for the way back."
    )
    tries: int = Field(
        3, ge=1, le=10, description="How often a segment is tried before the job fails."
    )
    call_timeout_s: float = Field(
        120.0, gt=0, description="The least deadline of a call, from the start of its work."
    )
    seconds_per_frame: float = Field(
        20.0,
        gt=0,
        description="Added to the deadline of a call for each frame, until the speed of such calls "
        "has been measured. The default suits a slow CPU.",
    )
    finish_timeout_s: float = Field(
        1200.0, gt=0, description="The deadline of stitching and upload."
    )


class QueueSettings(Section):
    """Jobs at this ingress."""

    max_concurrent_jobs: int | None = Field(
        None,
        ge=1,
        le=64,
        description="How many jobs run concurrently. Without it, one for each 2 GB of the "
        "machine's memory, 2 to 16.",
    )
    downloads_ahead: int = Field(
        4, ge=0, le=64, description="How many further jobs' inputs are fetched while they wait."
    )
    max_queued_jobs: int = Field(
        100, ge=1, description="Further jobs are answered with 429 and Retry-After."
    )
    max_batched_jobs: int = Field(
        1000,
        ge=1,
        description="As many jobs of batches may wait in addition. A batch with more is answered "
        "with 429.",
    )
    max_attempts: int = Field(
        3, ge=1, le=10, description="How often one job is started, restarts included."
    )
    lease_s: float = Field(
        20.0, gt=1, description="A job is taken over after this time without a sign of life."
    )
    keep_finished: int = Field(10_000, ge=10, description="How many finished jobs are remembered.")
    drain_s: float = Field(
        1800.0, gt=0, description="How long a stopping replica waits for its jobs."
    )
    handover_s: float = Field(
        60.0,
        ge=0,
        description="How long running jobs may go on while the application is deployed again. "
        "Those that take longer start again in the new ingress, which waits for the old one.",
    )


class HttpSettings(Section):
    """What browsers may do."""

    cors_origins: list[str] = Field(
        default_factory=list,
        description="The origins (https://app.example) whose pages may read answers. They need the "
        "key as all callers do. With *, pages of all sites may.",
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, texts: list[str]) -> list[str]:
        return [origin_of(text) for text in texts]


class LinkSettings(Section):
    """Links to finished videos of the local folder, and to streams."""

    lifetime_days: float = Field(7.0, gt=0, le=36500, description="How long a new link is valid.")
    trusted_proxies: list[str] = Field(
        default_factory=list,
        description="The addresses and networks whose X-Forwarded-Proto, -Host and -Prefix count.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, texts: list[str]) -> list[str]:
        for text in texts:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(f"{text!r} is neither an address nor a network") from None
        return texts


class AvatarSettings(Section):
    """Avatars that are kept for later jobs with the same video."""

    max_gb: float = Field(
        10.0,
        ge=0,
        description="Beyond this size the least recently used are removed. With 0 none are kept. "
        "1 GB is 10^9 bytes.",
    )
    keep_days: float = Field(
        30.0, gt=0, le=36500, description="Those that were not used for so long are removed."
    )
    shared_days: float = Field(
        30.0,
        ge=1,
        le=36500,
        description="With B2, an avatar that no job of any machine has used for so long is removed "
        "from the bucket.",
    )
    folder: Path | None = Field(
        None, description="The folder. Without it, `avatars` in the folder of the state."
    )


class StreamSettings(Section):
    """Videos that can be watched while they are made."""

    max_gb: float = Field(
        5.0,
        ge=0,
        description="Beyond this size the least recently watched are removed; those that are being "
        "made stay. With 0 none are made. 1 GB is 10^9 bytes.",
    )
    keep_minutes: float = Field(
        60.0,
        gt=0,
        le=525_600,
        description="A stream whose job has ended is removed when nobody has watched it for so "
        "long.",
    )


class StudioSettings(Section):
    """The page for creators."""

    enabled: bool = Field(
        True, description="The page is at `/`. If this is off, the API is all that there is."
    )


class ResultSettings(Section):
    """How long finished videos are kept in the local folder."""

    keep_days: float = Field(7.0, gt=0, le=36500, description="Older results are removed.")
    max_gb: float = Field(
        50.0,
        gt=0,
        description="Beyond this size the oldest results are removed. 1 GB is 10^9 bytes.",
    )


class UploadSettings(Section):
    """Files that callers upload to use them in jobs."""

    max_gb: float = Field(
        20.0,
        ge=0,
        description="Uploads beyond this size are refused until others have expired or were "
        "deleted. With 0 none are accepted. 1 GB is 10^9 bytes.",
    )
    keep_hours: float = Field(
        24.0, gt=0, le=876_000, description="An upload that no job has used for so long is removed."
    )
    unfinished_hours: float = Field(
        2.0,
        gt=0,
        le=876_000,
        description="So long an unfinished upload can be continued after its last byte.",
    )
    folder: Path | None = Field(
        None, description="The folder. Without it, `uploads` in the folder of the state."
    )
