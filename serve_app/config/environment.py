"""The environment of the worker contract, read once per process. Secrets are hidden from `repr`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# Where jobs come from: claimed from the orchestrator's queue or its buffer, or pushed.
Mode = Literal["poll", "buffer", "queue"]


MODES: tuple[Mode, ...] = ("poll", "buffer", "queue")


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
    def secrets(self) -> tuple[str, ...]:
        """What no log line may show."""
        kept = (
            self.internal_api_key,
            self.ingress_api_key,
            self.worker_token,
            self.webhook_secret,
            self.b2_key_id,
            self.b2_app_key,
        )
        return tuple(secret for secret in kept if secret)

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


def first_set(env: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := env.get(name, "").strip())), None)
