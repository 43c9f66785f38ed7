"""Every metric of the application, for Ray's Prometheus endpoint. Few labels, no job ids."""

from ray.util.metrics import Counter, Histogram

STAGE_SECONDS = Histogram(
    "lipsync_stage_seconds",
    description="Seconds of work in one call of a stage.",
    boundaries=[0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300],
    tag_keys=("stage",),
)
FRAMES_DRAWN = Counter("lipsync_frames_drawn_total", description="Faces that an engine drew.")
JOBS_ENDED = Counter(
    "lipsync_jobs_ended_total",
    description="Jobs that ended, by outcome: succeeded, failed, cancelled.",
    tag_keys=("outcome",),
)
CALLS_RETRIED = Counter(
    "lipsync_calls_retried_total",
    description="Calls asked for again after a lost replica or a missed deadline.",
    tag_keys=("stage",),
)
