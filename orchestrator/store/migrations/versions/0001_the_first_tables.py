"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Create the first tables."""
    _create_jobs()
    _create_keys()
    _create_workers()
    _create_attempts()
    _create_events()
    _create_idempotency_keys()
    _create_accounts()


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("video_url", sa.Text, nullable=False),
        sa.Column("audio_url", sa.Text, nullable=False),
        sa.Column("aspect_ratio", sa.Text),
        sa.Column("resolution", sa.Text),
        sa.Column("params", JSON),
        sa.Column("content_key", sa.Text, nullable=False),
        sa.Column("metadata", JSON),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("deadline", sa.Double),
        sa.Column("min_vram_gb", sa.Double, nullable=False),
        sa.Column("architectures", sa.Text, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("interruptions", sa.Integer, nullable=False),
        sa.Column("worker_id", sa.Text),
        sa.Column("leased_at", sa.Double),
        sa.Column("lease_until", sa.Double),
        sa.Column("unlisted", sa.Integer, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("counts", JSON),
        sa.Column("output_url", sa.Text),
        sa.Column("metrics", JSON),
        sa.Column("receipt", JSON),
        sa.Column("error", sa.Text),
        sa.Column("failure", JSON),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("queued_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.CheckConstraint(
            "(state = 'running') = (worker_id IS NOT NULL)"
            " AND (worker_id IS NULL) = (lease_until IS NULL)"
            " AND (worker_id IS NULL) = (leased_at IS NULL)",
            name=op.f("ck_jobs_lease"),
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'dead')",
            name=op.f("ck_jobs_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    _index_jobs()


def _index_jobs() -> None:
    op.create_index("ix_jobs_ended", "jobs", ["ended_at"])
    op.create_index("ix_jobs_newest", "jobs", ["created_at", "id"])
    op.create_index("ix_jobs_queue", "jobs", ["state", "client", "due_at", "id"])
    op.create_index("ix_jobs_worker", "jobs", ["worker_id"])


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
        sa.CheckConstraint("kind IN ('client', 'worker')", name=op.f("ck_keys_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
    )


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("worker_type", sa.Text, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("gpu_class", sa.Text),
        sa.Column("capacity", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("system_info", JSON),
        sa.Column("capabilities", JSON),
        sa.Column("is_drained", sa.Boolean, nullable=False),
        sa.Column("first_seen_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.Column("left_at", sa.Double),
        sa.Column("left_because", sa.Text),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_index("ix_workers_seen_at", "workers", ["seen_at"])


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("buffer_job_id", sa.Text),
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("worker_type", sa.Text, nullable=False),
        sa.Column("gpu_class", sa.Text),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("ending", sa.Text),
        sa.Column("phase", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("failure", JSON),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempts")),
        sa.UniqueConstraint("buffer_job_id", name=op.f("uq_attempts_buffer_job_id")),
    )
    op.create_index("ix_attempts_worker", "attempts", ["worker_id", "job_id"])


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("happened_at", sa.Double, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("facts", JSON),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_events_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_events")),
    )


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_idempotency_keys_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("client", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_job_id", "idempotency_keys", ["job_id"])


def _create_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("used", sa.Double, nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("ck_accounts_weight")),
        sa.PrimaryKeyConstraint("client", name=op.f("pk_accounts")),
    )
    clock = op.create_table("virtual_clock", sa.Column("time", sa.Double, nullable=False))
    op.bulk_insert(clock, [{"time": 0.0}])
