"""What an operator can set: `args:` of serve_config.yaml, and the environment.

The document is checked strictly (an unknown key stops the start). What the environment configures
is read here, once per process; who this worker is (identity.py) and what a one-shot job is to do
(one_shot.py) are read there, from a mapping that is given to them. Secrets come from the
environment only and are hidden from `repr`.
"""

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from musetalk_pipeline.options import (
    EncodeOptions,
    FaceOptions,
    FrameOptions,
    JobOptions,
    MaskOptions,
    MediaLimits,
    SpeechOptions,
    Speedup,
)
from serve_app.addresses import AddressPolicy
from serve_app.download_body import DownloadLimits
from serve_app.private_files import make_folder, private_folder, require_makeable, require_own
from serve_app.schemas import Params
from serve_app.scratch import check_root, default_work_dir, make_root

# Where jobs come from: claimed from the orchestrator's queue or its buffer, or pushed.
Mode = Literal["poll", "buffer", "queue"]
MODES: tuple[Mode, ...] = ("poll", "buffer", "queue")

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

        def pick(kind: type, **extra: object) -> object:
            names = kind.__dataclass_fields__.keys() & chosen.keys()  # type: ignore[attr-defined]
            return kind(**{name: chosen[name] for name in names}, **extra)

        # v1 has no chin margin and parses in `raw` mode (reference §1.12).
        mask = pick(MaskOptions)
        assert isinstance(mask, MaskOptions)
        if self.version == "v1" and "parsing_mode" not in chosen:
            mask = MaskOptions("raw", mask.left_cheek_width, mask.right_cheek_width, mask.blur)
        return JobOptions(
            frame=pick(FrameOptions),  # type: ignore[arg-type]
            face=pick(FaceOptions, version=self.version),  # type: ignore[arg-type]
            mask=mask,
            speech=pick(SpeechOptions),  # type: ignore[arg-type]
            encode=pick(EncodeOptions),  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of the worker contract, as far as the application itself acts on it."""

    internal_api_key: str | None = field(default=None, repr=False)  # sent to the orchestrator
    ingress_api_key: str | None = field(default=None, repr=False)  # asked of callers
    allow_anonymous: bool = False
    allow_local_store: bool = False
    legacy_size_source: bool = False
    logs_json: bool = False
    worker_token: str | None = field(default=None, repr=False)
    ping_is_public: bool = False
    orchestrator_url: str | None = None
    buffer_orchestrator_url: str | None = None
    mode: Mode = "queue"
    worker_type: str = "main"
    provider: str = "unknown"
    buffer_capacity: int = 1
    buffer_poll_interval_s: float = 10.0
    poll_interval_s: float = 5.0
    config_label: str = "default"
    batch_size: int | None = None
    max_file_mb: int | None = None
    max_concurrent_jobs: int | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_folders: tuple[Path, ...] = ()
    work_dir: Path | None = None
    result_dir: Path | None = None
    unet_path: Path | None = None
    unet_config: Path | None = None
    build_commit: str = "unknown"
    build_time: str = "unknown"
    image_digest: str = "unknown"
    host: str = "127.0.0.1"
    port: int = 8000
    speed_test_url: str | None = None
    webhook_secret: str | None = field(default=None, repr=False)
    b2_key_id: str | None = field(default=None, repr=False)
    b2_app_key: str | None = field(default=None, repr=False)
    b2_bucket: str | None = None
    b2_prefix: str = "avatar/outputs"
    salad_queue_job_id: str | None = None

    @property
    def is_buffer(self) -> bool:
        """Whether this worker speaks the buffer protocol."""
        return self.mode == "buffer"

    @property
    def polling_url(self) -> str | None:
        """The orchestrator to poll; None in queue mode, or if there is none."""
        if self.mode == "queue":
            return None
        if self.is_buffer and self.buffer_orchestrator_url:
            return self.buffer_orchestrator_url
        return self.orchestrator_url


def jobs_at_a_time(args: AppArgs, env: Environment) -> int:
    """Return how many jobs are drawn at a time here; those that are only fetched come on top."""
    if env.is_buffer:
        return env.buffer_capacity
    return env.max_concurrent_jobs or args.queue.max_concurrent_jobs


class EnvironmentInvalid(ValueError):
    """An environment variable has a value that cannot be used. Says which and what is accepted."""


class _Variables:
    """Reads variables by their kind. Empty ones count as unset."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str | None:
        return self._env.get(name) or None

    def flag(self, name: str) -> bool:
        return (self.text(name) or "").strip().lower() in {"1", "true", "yes", "on"}

    def interval(self, name: str, default: float) -> float:
        value = self._number(name, default)
        if value <= 0:
            raise EnvironmentInvalid(f"{name} must be a number of seconds above 0")
        return value

    def count(self, name: str) -> int | None:
        value = self._number(name, 0)
        if value != int(value) or value < 0:
            raise EnvironmentInvalid(f"{name} must be a whole number, not negative")
        return int(value) or None

    def path(self, name: str) -> Path | None:
        value = self.text(name)
        return None if value is None else Path(value)

    def _number(self, name: str, default: float) -> float:
        value = self.text(name)
        try:
            number = default if value is None else float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise EnvironmentInvalid(f"{name} must be a number")
        return number


def read_environment(env: Mapping[str, str] = os.environ) -> Environment:
    """Read contracts.md §5. Empty values count as unset.

    Raises:
        EnvironmentInvalid: a number is not a number. Correct the variable and start again.
    """
    variables = _Variables(env)
    text, count = variables.text, variables.count
    interval, path = variables.interval, variables.path
    hosts = tuple(host.strip() for host in (text("ALLOWED_SOURCE_HOSTS") or "").split(","))
    folders = (text("LIPSYNC_ALLOWED_FOLDERS") or "").split(":")
    return Environment(
        internal_api_key=text("INTERNAL_API_KEY"),
        ingress_api_key=text("INGRESS_API_KEY"),
        allow_anonymous=variables.flag("ALLOW_ANONYMOUS"),
        allow_local_store=variables.flag("ALLOW_LOCAL_STORE"),
        legacy_size_source=_ignores_sizes(variables),
        logs_json=(text("LIPSYNC_LOG_ENCODING") or "").upper() == "JSON",
        worker_token=text("WORKER_TOKEN"),
        ping_is_public=variables.flag("WORKER_PING_PUBLIC"),
        orchestrator_url=text("ORCHESTRATOR_BASE_URL"),
        buffer_orchestrator_url=text("BUFFER_ORCHESTRATOR_BASE_URL"),
        mode=_mode(variables),
        worker_type=text("WORKER_TYPE") or "main",
        provider=text("PROVIDER") or "unknown",
        buffer_capacity=count("BUFFER_CAPACITY") or 1,
        buffer_poll_interval_s=interval("BUFFER_POLL_INTERVAL_SEC", 10.0),
        poll_interval_s=interval("POLL_INTERVAL_SEC", 5.0),
        config_label=text("CONFIG_LABEL") or "default",
        batch_size=count("BATCH_SIZE"),
        max_file_mb=count("WORKER_MAX_FILE_MB"),
        max_concurrent_jobs=count("WORKER_MAX_CONCURRENT_JOBS"),
        allowed_hosts=tuple(host for host in hosts if host),
        allowed_folders=tuple(Path(folder) for folder in folders if folder),
        work_dir=path("MUSETALK_WORKDIR"),
        result_dir=path("MUSETALK_RESULT_DIR"),
        unet_path=path("MUSETALK_UNET_MODEL_PATH"),
        unet_config=path("MUSETALK_UNET_CONFIG"),
        build_commit=text("BUILD_COMMIT") or "unknown",
        build_time=text("BUILD_TIME") or "unknown",
        image_digest=text("IMAGE_DIGEST") or "unknown",
        host=text("LIPSYNC_HOST") or "127.0.0.1",
        port=count("WORKER_PORT") or 8000,
        speed_test_url=text("SPEED_TEST_URL"),
        webhook_secret=text("WEBHOOK_SECRET"),
        b2_key_id=text("B2_KEY_ID"),
        b2_app_key=text("B2_APP_KEY"),
        b2_bucket=text("B2_BUCKET_NAME"),
        b2_prefix=env.get("B2_PREFIX", "avatar/outputs"),  # empty: the bucket's root
        salad_queue_job_id=text("SALAD_QUEUE_JOB_ID"),
    )


def _ignores_sizes(variables: _Variables) -> bool:
    """Say whether `LEGACY_SIZE=source` is set.

    Raises:
        EnvironmentInvalid: it has another value.
    """
    value = (variables.text("LEGACY_SIZE") or "").strip().lower()
    if value not in ("", "source"):
        raise EnvironmentInvalid("LEGACY_SIZE must be `source`, or not be set")
    return value == "source"


def _mode(variables: _Variables) -> Mode:
    """Return where jobs come from (contracts.md §2, "Modes").

    Raises:
        EnvironmentInvalid: `WORKER_MODE` names no mode.
    """
    named = (variables.text("WORKER_MODE") or "").strip().lower()
    if named and named not in MODES:
        raise EnvironmentInvalid(f"WORKER_MODE must be one of {', '.join(MODES)}")
    if named == "buffer" or variables.text("BUFFER_WORKER_ID"):
        return "buffer"
    if named:
        return "poll" if named == "poll" else "queue"
    # The environment of the worker that was poller and server in one.
    unified = ("ORCHESTRATOR_BASE_URL", "INTERNAL_API_KEY", "WORKER_TYPE")
    return "poll" if all(variables.text(name) for name in unified) else "queue"


@dataclass(frozen=True, slots=True)
class Folders:
    """Where this node keeps things. `scratch` holds one folder per attempt and nothing else."""

    scratch: Path
    results: Path
    state: Path


def check_folders(args: AppArgs, env: Environment) -> None:
    """Look at the working folders that are there already, and make nothing.

    Raises:
        FolderRefused: one of them cannot be trusted. The sentence names the setting.
    """
    folders = _folders(args, env)
    check_root(folders.scratch)
    require_own(folders.state.resolve(), "state_dir")
    require_makeable(folders.scratch, "work_dir (MUSETALK_WORKDIR)")
    if env.b2_bucket is None:
        require_makeable(folders.results, "result_dir (MUSETALK_RESULT_DIR)")
    require_makeable(folders.state, "state_dir")


def make_folders(args: AppArgs, env: Environment) -> Folders:
    """Create the working folders; relative ones are taken from the working directory.

    Raises:
        FolderRefused: one of them cannot be trusted or made. The sentence names the setting.
    """
    folders = _folders(args, env)
    make_root(folders.scratch)
    if not folders.results.is_dir():
        # One that is there keeps its mode: the operator may share it. The files in it are private.
        make_folder(folders.results, "result_dir (MUSETALK_RESULT_DIR)")
    make_folder(folders.state.parent, "state_dir")
    # The registry holds signed addresses. A link that the operator made is followed.
    private_folder(folders.state.resolve(), "state_dir")
    return folders


def _folders(args: AppArgs, env: Environment) -> Folders:
    work = env.work_dir or args.work_dir or default_work_dir()
    results = env.result_dir or args.result_dir
    return Folders(*(path.absolute() for path in (work / "jobs", results, args.state_dir)))
