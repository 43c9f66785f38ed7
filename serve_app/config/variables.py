"""Every environment variable of a worker: name, kind, default and meaning, once.

The variables of two commands are not here: those of a one-shot job (one_shot/variables.py), and
`HF_ENDPOINT` of `lipsync weights fetch`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from serve_app.config.variable_kinds import (
    Count,
    Flag,
    Folders,
    Hosts,
    Interval,
    IsJson,
    IsSource,
    Name,
    Origins,
    WorkerMode,
)


class Variables(BaseSettings):
    """Variables that belong together. Its docstring is their heading in the documentation."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        case_sensitive=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is passed in. The process's variables are `read_environment`'s to read."""
        return (init_settings,)


class Callers(Variables):
    """Who may call"""

    ingress_api_key: SecretStr | None = Field(
        None,
        validation_alias="INGRESS_API_KEY",
        description="Every caller must send this key, in `X-Internal-API-Key` or `Authorization: "
        "Bearer`. `/hc` and `/health` stay open. Without it, programs on this machine need no key.",
    )
    internal_api_key: SecretStr | None = Field(
        None,
        validation_alias="INTERNAL_API_KEY",
        description="The worker sends this key to its orchestrator. Without `INGRESS_API_KEY`, "
        "callers from other machines need it too.",
    )
    allow_anonymous: Flag = Field(
        False,
        validation_alias="ALLOW_ANONYMOUS",
        description="`true` admits callers from other machines although neither key is set.",
    )
    worker_token: SecretStr | None = Field(
        None,
        validation_alias="WORKER_TOKEN",
        description="The bearer token of `/v1/ping` and `/v1/preflight`.",
    )
    ping_is_public: Flag = Field(
        False,
        validation_alias="WORKER_PING_PUBLIC",
        description="`true` opens `/v1/ping` to everybody.",
    )
    cors_origins: Origins = Field(
        (),
        validation_alias="LIPSYNC_CORS_ORIGINS",
        description="Further origins whose pages may read answers, separated by commas. The "
        "launcher sets it for the proxies.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        validation_alias="WEBHOOK_SECRET",
        description="Webhooks are signed with it: `whsec_` and the base64 of 24 to 64 random "
        "bytes. Without it, `webhook_url` is refused.",
    )


class Fetching(Variables):
    """What may be fetched"""

    allowed_folders: Folders = Field(
        (),
        validation_alias="LIPSYNC_ALLOWED_FOLDERS",
        description="Further folders that `file://` inputs may come from, separated by colons.",
    )
    allowed_hosts: Hosts = Field(
        (),
        validation_alias="ALLOWED_SOURCE_HOSTS",
        description="Further private hosts or networks that may be fetched from, separated by "
        "commas. Webhooks may be sent to them too.",
    )
    max_file_mb: Count | None = Field(
        None,
        validation_alias="WORKER_MAX_FILE_MB",
        description="The largest input file.",
        json_schema_extra={"default": "`inputs.max_file_mb`"},
    )
    legacy_size_source: IsSource = Field(
        False,
        validation_alias="LEGACY_SIZE",
        description="`source` ignores `aspect_ratio` and `resolution` of `POST /generate` and of "
        "claims.",
        json_schema_extra={"default": "none"},
    )


class Running(Variables):
    """Running"""

    port: Count = Field(
        8000,
        validation_alias="WORKER_PORT",
        description="The port that the worker listens on, and that its links name.",
        json_schema_extra={"default": "`http_options.port`"},
    )
    host: str = Field(
        "127.0.0.1",
        validation_alias="LIPSYNC_HOST",
        description="The address that the worker listens on. The launcher sets it for the "
        "replicas.",
        json_schema_extra={"default": "`http_options.host`"},
    )
    logs_json: IsJson = Field(
        False,
        validation_alias="LIPSYNC_LOG_ENCODING",
        description="`JSON` or `TEXT`. The launcher sets it for the replicas.",
        json_schema_extra={"default": "`logging_config.encoding`"},
    )
    max_concurrent_jobs: Count | None = Field(
        None,
        validation_alias="WORKER_MAX_CONCURRENT_JOBS",
        description="How many jobs run concurrently.",
        json_schema_extra={"default": "`queue.max_concurrent_jobs`"},
    )
    batch_size: Count | None = Field(
        None,
        validation_alias="BATCH_SIZE",
        description="Frames in one pass through the networks, for pools without a `batch_size`.",
        json_schema_extra={"default": "by free GPU memory"},
    )
    work_dir: Path | None = Field(
        None,
        validation_alias="MUSETALK_WORKDIR",
        description="The folder for scratch files.",
        json_schema_extra={"default": "`work_dir`"},
    )
    result_dir: Path | None = Field(
        None,
        validation_alias="MUSETALK_RESULT_DIR",
        description="The folder for finished videos.",
        json_schema_extra={"default": "`result_dir`"},
    )
    unet_path: Path | None = Field(
        None,
        validation_alias="MUSETALK_UNET_MODEL_PATH",
        description="The weights of another UNet.",
        json_schema_extra={"default": "in `models_dir`"},
    )
    unet_config: Path | None = Field(
        None,
        validation_alias="MUSETALK_UNET_CONFIG",
        description="The configuration of that UNet.",
        json_schema_extra={"default": "in `models_dir`"},
    )
    build_commit: str = Field(
        "unknown", validation_alias="BUILD_COMMIT", description="`/v1/ping` shows it."
    )
    build_time: str = Field(
        "unknown", validation_alias="BUILD_TIME", description="`/v1/ping` shows it."
    )
    image_digest: str = Field(
        "unknown", validation_alias="IMAGE_DIGEST", description="`/v1/ping` shows it."
    )


class Results(Variables):
    """Where results go"""

    b2_key_id: SecretStr | None = Field(
        None,
        validation_alias="B2_KEY_ID",
        description="Backblaze B2 takes the results if this, `B2_APP_KEY` and `B2_BUCKET_NAME` are "
        "all set. If only some are, the start is refused. Without them, results stay in "
        "`result_dir`.",
    )
    b2_app_key: SecretStr | None = Field(
        None, validation_alias="B2_APP_KEY", description="The secret of that key."
    )
    b2_bucket: str | None = Field(
        None, validation_alias="B2_BUCKET_NAME", description="The bucket that results are put in."
    )
    b2_prefix: str = Field(
        "avatar/outputs",
        validation_alias="B2_PREFIX",
        description="The folder in the bucket. Set but empty, it is the bucket's root.",
    )
    allow_local_store: Flag = Field(
        False,
        validation_alias="ALLOW_LOCAL_STORE",
        description="`true` lets a worker claim jobs although its results stay on this machine. "
        "`public_base_url` then says how they are reached.",
    )


class Fleet(Variables):
    """A worker of a fleet"""

    worker_mode: WorkerMode | None = Field(
        None,
        validation_alias="WORKER_MODE",
        description="`poll` and `buffer` claim jobs from an orchestrator. `queue` waits for jobs "
        "at `POST /generate` and reports them to the orchestrator if there is one.",
        json_schema_extra={"default": "see below"},
    )
    orchestrator_url: str | None = Field(
        None,
        validation_alias="ORCHESTRATOR_BASE_URL",
        description="Where jobs are claimed and reported.",
    )
    worker_type: str = Field(
        "main",
        validation_alias="WORKER_TYPE",
        description="`main`, `transient` or `expensive`.",
    )
    poll_interval_s: Interval = Field(
        5.0,
        validation_alias="POLL_INTERVAL_SEC",
        description="Seconds between claims. Heartbeats are sent at least every 10 s.",
    )
    buffer_orchestrator_url: str | None = Field(
        None,
        validation_alias="BUFFER_ORCHESTRATOR_BASE_URL",
        description="The orchestrator of a buffer worker.",
        json_schema_extra={"default": "`ORCHESTRATOR_BASE_URL`"},
    )
    buffer_worker_id: Name | None = Field(
        None,
        validation_alias="BUFFER_WORKER_ID",
        description="The identity of a buffer worker.",
        json_schema_extra={"default": "`buffer-<hostname>`"},
    )
    buffer_capacity: Count = Field(
        1,
        validation_alias="BUFFER_CAPACITY",
        description="How many jobs a buffer worker runs concurrently.",
    )
    buffer_poll_interval_s: Interval = Field(
        10.0,
        validation_alias="BUFFER_POLL_INTERVAL_SEC",
        description="Seconds between the claims of a buffer worker.",
    )
    salad_machine_id: Name | None = Field(
        None,
        validation_alias="SALAD_MACHINE_ID",
        description="The identity of the worker is the first that is set of this and the next "
        "three.",
        json_schema_extra={"default": "random"},
    )
    vast_container_label: Name | None = Field(
        None, validation_alias="VAST_CONTAINERLABEL", description="The identity, as above."
    )
    octaspace_node_id: Name | None = Field(
        None, validation_alias="OCTASPACE_NODE_ID", description="The identity, as above."
    )
    own_id: Name | None = Field(
        None, validation_alias="WORKER_ID", description="The identity, as above."
    )
    provider: str = Field("unknown", validation_alias="PROVIDER", description="It is reported.")
    gpu_class_name: Name | None = Field(
        None,
        validation_alias="GPU_CLASS_NAME",
        description="The class of the GPU, which is reported.",
        json_schema_extra={"default": "detected"},
    )
    short_gpu_class: Name | None = Field(
        None,
        validation_alias="GPU_CLASS",
        description="Another name of `GPU_CLASS_NAME`, which counts if both are set. For a buffer "
        "worker, this one counts.",
    )
    config_label: str = Field(
        "default",
        validation_alias="CONFIG_LABEL",
        description="It is reported with progress, to compare configurations.",
    )
    salad_queue_job_id: str | None = Field(
        None,
        validation_alias="SALAD_QUEUE_JOB_ID",
        description="The id of the queue's job, for the description next to the video.",
    )
    speed_test_url: str | None = Field(
        None,
        validation_alias="SPEED_TEST_URL",
        description="The download speed from this address is measured and reported.",
    )
