"""`args:` of serve_config.yaml, checked strictly: an unknown key stops the start.

The sections are in sections.py, the variables of the environment in variables.py. Secrets come from
the environment only.
"""

import math
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from musetalk_pipeline.engines import EngineChoice
from musetalk_pipeline.faces import DetectorName, PersonBox, Presence
from musetalk_pipeline.loading import ToolOptions
from musetalk_pipeline.option_spec import options_of
from musetalk_pipeline.options import JobOptions, Version, defaults_for
from serve_app.config.environment import Environment
from serve_app.config.memory import machine_memory_bytes
from serve_app.config.sections import (
    AvatarSettings,
    DriverSettings,
    HttpSettings,
    InputSettings,
    LinkSettings,
    PoolSettings,
    PreprocessorSettings,
    QueueSettings,
    ResultSettings,
    ScalingSettings,
    Section,
    StageSettings,
    StreamSettings,
    StudioSettings,
    UploadSettings,
)
from serve_app.contract.requests import Params, option_field

__all__ = [
    "API_VERSION",
    "APP_NAME",
    "SERVICE_NAME",
    "AppArgs",
    "AvatarSettings",
    "DriverSettings",
    "HttpSettings",
    "InputSettings",
    "LinkSettings",
    "PoolSettings",
    "PreprocessorSettings",
    "QueueSettings",
    "ResultSettings",
    "ScalingSettings",
    "Section",
    "StageSettings",
    "StreamSettings",
    "StudioSettings",
    "UploadSettings",
    "configured_jobs",
    "cors_origins",
    "jobs_at_a_time",
    "jobs_for",
    "reported_jobs",
]

SERVICE_NAME = "lipsync-serve"
APP_NAME = "lipsync"  # of the application in Ray Serve
API_VERSION = "0.1.0"
BYTES_A_JOB = 2e9
LEAST_JOBS, MOST_JOBS = 2, 16


def _tool(name: str) -> Any:
    """Return a field with the default, the bounds and the help of the library's option `name`."""
    option = next(option for option in options_of(ToolOptions) if option.name == name)
    return option_field(option, option.default)


class AppArgs(Section):
    """`args:` of serve_config.yaml."""

    engine: EngineChoice = _tool("engine")
    version: Version = Field("v15", description="The version of MuseTalk's model.")
    models_dir: Path = Field(Path("models"), description="The folder of the published weights.")
    seed: int | None = _tool("seed")
    landmarks: Literal["auto", DetectorName] = Field(
        "auto", description="With auto: mmpose or onnx if the engine is musetalk, else mesh."
    )
    face_presence: Presence = _tool("face_presence")
    person_box: PersonBox = _tool("person_box")
    presence_interval: int = _tool("presence_interval")
    pools: list[PoolSettings] = Field(
        min_length=1, description="Each pool is one Generator deployment."
    )
    ingress_cpus: float = Field(
        0.25, gt=0, description="The CPUs that Ray reserves for the ingress."
    )
    preprocessor: PreprocessorSettings = PreprocessorSettings()
    finisher: StageSettings = StageSettings()
    inputs: InputSettings = InputSettings()
    scaling: ScalingSettings = ScalingSettings()
    driver: DriverSettings = DriverSettings()
    queue: QueueSettings = QueueSettings()
    results: ResultSettings = ResultSettings()
    streams: StreamSettings = StreamSettings()
    avatars: AvatarSettings = AvatarSettings()
    uploads: UploadSettings = UploadSettings()
    defaults: Params = Params()
    work_dir: Path | None = Field(
        None, description="The folder for scratch files. Without it, one among the temporary files."
    )
    result_dir: Path = Field(
        Path("out/files"), description="The folder for finished videos, without B2."
    )
    state_dir: Path = Field(
        Path(".state"), description="The folder for the job registry and unsent reports."
    )
    metrics_port: int = Field(
        9464,
        ge=0,
        le=65535,
        description="The port of the Prometheus metrics, on 127.0.0.1. With 0, any free port.",
    )
    public_base_url: str | None = Field(
        None,
        description="What links begin with. Without it, they begin with the address that the "
        "request came by; in webhooks and reports, with the address that is listened on.",
    )
    links: LinkSettings = LinkSettings()
    http: HttpSettings = HttpSettings()
    studio: StudioSettings = StudioSettings()
    stack_traces: bool = Field(
        False, description="Answers with status 500 contain the stack trace."
    )

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

    @property
    def is_scaled(self) -> bool:
        """Whether the number of any replicas follows the work."""
        stages: list[PoolSettings | StageSettings] = [*self.pools, self.preprocessor, self.finisher]
        return any(stage.max_replicas is not None for stage in stages)

    def longest_silence_s(self, jobs: int) -> float:
        """Return how long a live attempt may go without a call to a node, when `jobs` run at once.

        Every call to a stage shows that its attempt lives, and ends by its deadline
        (graph/stage_calls.py). A call may have been made `tries` times before one of them reaches
        this node, and before each of them every other job may have had its turn.
        """
        driver = self.driver
        frames = math.ceil(driver.block_s * self.inputs.max_fps)
        turns_s = (driver.call_timeout_s + frames * driver.seconds_per_frame) * jobs
        opening_s = driver.tries * self.inputs.download_timeout_s
        drawing_s = driver.tries * (turns_s + driver.no_replica_timeout_s)
        return opening_s + drawing_s + driver.tries * driver.finish_timeout_s

    def job_defaults(self) -> JobOptions:
        """Return the options of a job that chooses nothing."""
        return defaults_for(self.version).with_choices(self.defaults.chosen())


def cors_origins(args: AppArgs, env: Environment) -> tuple[str, ...]:
    """Return the origins of pages that may read answers."""
    return tuple(sorted({*args.http.cors_origins, *env.cors_origins}))


def jobs_at_a_time(args: AppArgs, env: Environment) -> int:
    """Return how many jobs are drawn concurrently here. Those that are only fetched are extra."""
    return configured_jobs(args, env) or jobs_for(machine_memory_bytes())


def configured_jobs(args: AppArgs, env: Environment) -> int | None:
    """Return how many jobs are to be drawn concurrently; None if the memory decides."""
    if env.is_buffer:
        return env.buffer_capacity
    return env.max_concurrent_jobs or args.queue.max_concurrent_jobs


def reported_jobs(args: AppArgs, env: Environment) -> int:
    """Return how many jobs orchestrators are told to expect here at once.

    If the memory decides, more jobs than replicas would only wait for each other here, while
    another worker may be idle. One more than replicas keeps them busy between two jobs.
    """
    replicas = sum(pool.max_replicas or pool.replicas for pool in args.pools)
    return configured_jobs(args, env) or min(jobs_at_a_time(args, env), replicas + 1)


def jobs_for(memory_bytes: int) -> int:
    """Return for how many jobs a machine has memory.

    A job keeps up to 64 encoded blocks (200 MB), and its media are decoded while it is opened.
    """
    return min(MOST_JOBS, max(LEAST_JOBS, round(memory_bytes / BYTES_A_JOB)))
