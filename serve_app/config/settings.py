"""What an operator can set: `args:` of serve_config.yaml, and the environment.

The document is checked strictly (an unknown key stops the start). What the environment configures
is read here, once per process; who this worker is (identity.py) and what a one-shot job is to do
(one_shot.py) are read there, from a mapping that is given to them. Secrets come from the
environment only and are hidden from `repr`.
"""

import ipaddress
import math
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from musetalk_pipeline.options import JobOptions, MediaLimits, Speedup, defaults_for
from serve_app.config.environment import Environment
from serve_app.contract.requests import Params
from serve_app.inputs.download_body import DownloadLimits
from serve_app.net.addresses import AddressPolicy

SERVICE_NAME = "lipsync-serve"
APP_NAME = "lipsync"  # of the application in Ray Serve
API_VERSION = "0.1.0"


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageSettings(Section):
    """Replicas of one CPU stage."""

    replicas: int = Field(1, ge=1, le=64, description="Replicas at the start, and at least.")
    max_replicas: int | None = Field(None, ge=1, le=256, description="Scale up to; none: fixed.")
    num_cpus: float = Field(0.25, gt=0, le=64, description="CPUs that Ray reserves for each.")
    threads: int = Field(2, ge=1, le=64, description="Worker threads, and calls at a time.")
    label_selector: dict[str, str] = Field(default_factory=dict, description="Node labels.")

    @model_validator(mode="after")
    def _bounds(self) -> "StageSettings":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is smaller than replicas")
        return self


class PreprocessorSettings(StageSettings):
    """Replicas of the Preprocessor; `mmpose` and S3FD may run on a GPU there."""

    num_gpus: float = Field(
        0.0, ge=0, le=1, description="Share of a GPU for mmpose and s3fd; 0: they run on the CPU."
    )


class PoolSettings(Section):
    """The Generator replicas of one GPU architecture, or of CPUs."""

    name: str = Field(description="Unique; the deployment is called Generator-<name>.")
    arch: Literal["cpu", "turing", "ampere", "ada", "hopper", "blackwell"] = Field(
        "cpu", description="Placed on nodes labelled musetalk/arch=<arch>; cpu: on any node."
    )
    replicas: int = Field(1, ge=0, le=256, description="Replicas at the start, and at least.")
    max_replicas: int | None = Field(None, ge=1, le=256, description="Scale up to; none: fixed.")
    num_cpus: float = Field(0.25, gt=0, le=64, description="CPUs that Ray reserves for each.")
    num_gpus: float = Field(
        0.0, ge=0, le=1, description="Share of a GPU for each; of its free memory too."
    )
    device: str | None = Field(None, description="cpu, cuda:0; none: cuda:0 if num_gpus > 0.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32")
    batch_size: int | None = Field(None, ge=1, le=256, description="None: by free GPU memory.")
    threads: int = Field(1, ge=1, le=64, description="CPU threads of the networks.")
    speedup: Speedup = Field(
        "none", description="What a GPU does on top; unmeasured so far. compile needs a C compiler."
    )
    usd_per_hour: float = Field(0.0, ge=0, description="Price of one replica, to order pools by.")
    frames_per_s: float = Field(1.0, gt=0, description="Speed of one replica, to order pools by.")

    @model_validator(mode="after")
    def _name_is_plain(self) -> "PoolSettings":
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", self.name):
            raise ValueError(f"pool name {self.name!r}: use lower-case letters, digits and dashes")
        return self


class InputSettings(Section):
    """What may be fetched, and how large it may be."""

    allowed_folders: list[Path] = Field(
        default_factory=list, description="Folders that file:// inputs may come from."
    )
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Hosts, networks that are fetched from though private."
    )
    max_file_mb: int = Field(2000, ge=1, description="Largest input file.")
    max_duration_s: float = Field(3600.0, gt=0, description="Longest input.")
    max_pixels: int = Field(4096 * 2304, ge=4096, description="Most pixels in one frame.")
    max_side_px: int = Field(8192, ge=64, description="Longest side of a frame.")
    max_fps: float = Field(120.0, gt=0, description="Highest frame rate.")
    max_streams: int = Field(16, ge=1, description="Most streams in one file.")
    download_timeout_s: float = Field(600.0, gt=0, description="For all attempts at one file.")
    min_bytes_per_s: int = Field(
        65536, ge=0, description="Slower downloads are given up after a minute; 0: never."
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

    window_segments: int = Field(3, ge=1, le=64, description="Segments of a job in flight.")
    block_s: float = Field(2.0, gt=0, le=30, description="Seconds of source in one block, at most.")
    kept_blocks: int = Field(64, ge=1, description="Prepared blocks kept for the way back.")
    tries: int = Field(3, ge=1, le=10, description="Tries at a segment before the job fails.")
    call_timeout_s: float = Field(120.0, gt=0, description="Deadline of a call, beside its work.")
    seconds_per_frame: float = Field(
        20.0, gt=0, description="Added to a segment's deadline per frame; full size on a slow CPU."
    )
    finish_timeout_s: float = Field(1200.0, gt=0, description="Deadline of stitch and upload.")


class QueueSettings(Section):
    """Jobs at this ingress."""

    max_concurrent_jobs: int = Field(2, ge=1, le=64, description="Jobs that run at a time.")
    downloads_ahead: int = Field(
        4, ge=0, le=64, description="Further jobs whose inputs are fetched while they wait."
    )
    max_queued_jobs: int = Field(100, ge=1, description="Beyond that: 429 with Retry-After.")
    max_attempts: int = Field(3, ge=1, le=10, description="Starts of one job, restarts included.")
    lease_s: float = Field(20.0, gt=1, description="Silence after which a job is taken over.")
    keep_finished: int = Field(10_000, ge=10, description="Finished jobs remembered.")
    drain_s: float = Field(1800.0, gt=0, description="A stopping replica waits that long for jobs.")


class LinkSettings(Section):
    """Links to finished videos of the local folder."""

    lifetime_days: float = Field(7.0, gt=0, le=36500, description="How long a new link is valid.")
    trusted_proxies: list[str] = Field(
        default_factory=list,
        description="Addresses, networks whose X-Forwarded-Proto, -Host and -Prefix count.",
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


class ResultSettings(Section):
    """Finished videos in the local folder: how long they are kept."""

    keep_days: float = Field(7.0, gt=0, le=36500, description="Older ones are removed.")
    max_gb: float = Field(
        50.0, gt=0, description="Beyond that the oldest are removed; 1 GB is 10^9 bytes."
    )


class AppArgs(Section):
    """`args:` of serve_config.yaml."""

    engine: Literal["auto", "musetalk", "warp"] = Field(
        "auto", description="auto: musetalk where its weights are found, else warp."
    )
    version: Literal["v15", "v1"] = Field("v15", description="MuseTalk's model version.")
    models_dir: Path = Field(Path("models"), description="The published weights.")
    seed: int | None = Field(
        None, ge=0, le=2**32 - 1, description="Samples the VAE as the reference; none: its mean."
    )
    landmarks: Literal["auto", "mesh", "onnx", "mmpose"] = Field(
        "auto", description="auto: mmpose or onnx where the engine is musetalk, else mesh."
    )
    face_presence: Literal["landmarks", "s3fd"] = Field(
        "landmarks", description="What decides whether a frame has a face."
    )
    person_box: Literal["frame", "face"] = Field(
        "frame", description="Where onnx and mmpose look: face finds small ones, with mesh's help."
    )
    presence_interval: int = Field(12, ge=1, description="Frames between two looks by s3fd.")
    pools: list[PoolSettings] = Field(min_length=1, description="One Generator deployment each.")
    ingress_cpus: float = Field(0.25, gt=0, description="CPUs that Ray reserves for the ingress.")
    preprocessor: PreprocessorSettings = PreprocessorSettings()
    finisher: StageSettings = StageSettings()
    inputs: InputSettings = InputSettings()
    driver: DriverSettings = DriverSettings()
    queue: QueueSettings = QueueSettings()
    results: ResultSettings = ResultSettings()
    defaults: Params = Params()
    work_dir: Path | None = Field(None, description="Scratch; none: a folder in the temp dir.")
    result_dir: Path = Field(Path("out/files"), description="Finished videos, without B2.")
    state_dir: Path = Field(Path(".state"), description="The job registry and unsent reports.")
    metrics_port: int = Field(
        9464, ge=0, le=65535, description="Prometheus metrics, on 127.0.0.1; 0: any free port."
    )
    public_base_url: str | None = Field(
        None,
        description="What links begin with; none: what the request came by, in webhooks and "
        "reports what is bound.",
    )
    links: LinkSettings = LinkSettings()
    stack_traces: bool = Field(False, description="Put the stack trace into 500 answers.")

    @field_validator("public_base_url")
    @classmethod
    def _is_a_base(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
            raise ValueError("use http:// or https://, a host and at most a path")
        return text

    @model_validator(mode="after")
    def _pool_names_differ(self) -> "AppArgs":
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError(f"pool names must differ: {', '.join(names)}")
        return self

    def longest_silence_s(self, jobs: int) -> float:
        """Return how long a node may hear nothing of a live attempt when `jobs` run at a time.

        Every call to a stage says that its attempt lives, and ends by its deadline (driver.py). A
        call may have been asked for `tries` times before one of them reaches this node.
        """
        frames = math.ceil(self.driver.block_s * self.inputs.max_fps)
        drawing_s = frames * self.driver.seconds_per_frame * self.driver.window_segments * jobs
        calls_s = self.driver.tries * (self.driver.call_timeout_s + drawing_s)
        opening_s = self.driver.tries * self.inputs.download_timeout_s
        return opening_s + calls_s + self.driver.tries * self.driver.finish_timeout_s

    def job_defaults(self) -> JobOptions:
        """Return the options of a job that chooses nothing."""
        chosen = self.defaults.model_dump(exclude_none=True)
        return defaults_for(self.version).with_choices(chosen)


def jobs_at_a_time(args: AppArgs, env: Environment) -> int:
    """Return how many jobs are drawn at a time here; those that are only fetched come on top."""
    if env.is_buffer:
        return env.buffer_capacity
    return env.max_concurrent_jobs or args.queue.max_concurrent_jobs
