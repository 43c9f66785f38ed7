"""Every metric of the application, for Ray's Prometheus endpoint. Few labels, no job ids.

docs/operations.md explains them, and docs/grafana/lipsync.json shows them.
"""

from typing import TypeVar

from ray.util.metrics import Counter, Histogram

from musetalk_pipeline.cost import Measured
from serve_app.telemetry.kept_gauge import KeptGauge

T = TypeVar("T")

STAGE_SECONDS = Histogram(
    "lipsync_stage_seconds",
    description="Seconds of work in one call of a stage.",
    boundaries=[0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300],
    tag_keys=("stage", "pool"),
).set_default_tags({"pool": ""})
# Ray adds up the middles of a histogram's buckets, so its sum is no more than an estimate.
STAGE_WORK = Counter(
    "lipsync_stage_work_seconds_total",
    description="Seconds of work of a stage.",
    tag_keys=("stage", "pool"),
)
STAGE_FRAMES = Counter(
    "lipsync_stage_frames_total",
    description="Frames that a stage worked on.",
    tag_keys=("stage", "pool"),
)
STAGE_WAITING = Counter(
    "lipsync_stage_waiting_seconds_total",
    description="Seconds that calls of a stage waited on their replica before they began.",
    tag_keys=("stage", "pool"),
)
FRAMES_DRAWN = Counter(
    "lipsync_frames_drawn_total", description="Faces that an engine drew.", tag_keys=("pool",)
)
ENGINES = KeptGauge(
    "lipsync_engines", description="1 for each replica with a loaded engine.", tag_keys=("pool",)
)
ENGINE_BUSY = Counter(
    "lipsync_engine_busy_seconds_total",
    description="Seconds that an engine worked, failed calls and previews included.",
    tag_keys=("pool",),
)
VRAM_PEAK = KeptGauge(
    "lipsync_vram_peak_mib",
    description="Peak GPU memory of a replica's last call, MiB.",
    tag_keys=("pool",),
)
VRAM_HELD = KeptGauge(
    "lipsync_vram_held_mib",
    description="GPU memory that a replica keeps for its engine, MiB.",
    tag_keys=("pool",),
)
SEGMENTS_WAITING = KeptGauge(
    "lipsync_segments_waiting",
    description="Segments, and blocks for them, that are ready and wait for a replica of a pool.",
)
SEGMENTS_IN_FLIGHT = KeptGauge(
    "lipsync_segments_in_flight",
    description="Segments, and blocks for them, that the replicas of a pool work on.",
    tag_keys=("pool",),
)
SEGMENTS_RETRIED = Counter(
    "lipsync_segments_retried_total",
    description="Tries at a segment that failed, by the pool that had it.",
    tag_keys=("pool",),
)
CALLS_RETRIED = Counter(
    "lipsync_calls_retried_total",
    description="Calls asked for again after a lost replica or a missed deadline.",
    tag_keys=("stage",),
)
AVATAR_BLOCKS = Counter(
    "lipsync_avatar_blocks_total",
    description="Blocks of avatars: loaded from the cache (hit), or made (miss).",
    tag_keys=("result",),
)
JOBS_QUEUED = KeptGauge("lipsync_jobs_queued", description="Jobs that wait in the registry.")
JOBS_RUNNING = KeptGauge(
    "lipsync_jobs_running", description="Jobs with an attempt at this ingress."
)
JOBS_ENDED = Counter(
    "lipsync_jobs_ended_total",
    description="Jobs that ended, by outcome: succeeded, failed, cancelled.",
    tag_keys=("outcome",),
)
UPLOADS_FINISHED = Counter(
    "lipsync_uploads_finished_total",
    description="Files that were uploaded whole and can be used, by kind: video, audio, picture.",
    tag_keys=("kind",),
)
UPLOAD_BYTES = Counter(
    "lipsync_upload_bytes_total", description="Bytes of uploads that were stored."
)
UPLOADS_REFUSED = Counter(
    "lipsync_uploads_refused_total",
    description="Requests that were refused for an upload, by the code of the answer.",
    tag_keys=("code",),
)
UPLOADS_KEPT = KeptGauge(
    "lipsync_uploads_kept_bytes",
    description="Bytes that uploads take, those included that unfinished ones have announced.",
)

CACHE_RESULTS = {"load": "hit", "encode": "miss"}


def recorded(measured: Measured[T]) -> Measured[T]:
    """Count the call of a stage that made a value, and return the value."""
    own = measured.own
    _record_work(own.stage, own.seconds, own.pool or "")
    tags = {"stage": str(own.stage), "pool": own.pool or ""}
    if own.frames:  # a counter refuses 0
        STAGE_FRAMES.inc(own.frames, tags)
    if own.waited_s > 0:
        STAGE_WAITING.inc(own.waited_s, tags)
    if own.stage in CACHE_RESULTS:
        AVATAR_BLOCKS.inc(tags={"result": CACHE_RESULTS[own.stage]})
    return measured


def record_stage(stage: str, seconds: float) -> None:
    """Count work that is not a call of a stage, such as an upload."""
    _record_work(stage, seconds, "")


def _record_work(stage: str, seconds: float, pool: str) -> None:
    tags = {"stage": stage, "pool": pool}
    STAGE_SECONDS.observe(seconds, tags)
    if seconds > 0:
        STAGE_WORK.inc(seconds, tags)
