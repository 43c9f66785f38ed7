"""Batches: jobs that were submitted together, with one state and one webhook."""

import sqlalchemy as sa
from alembic import op

revision = "0005_batches"
down_revision = "0004_deliveries"

JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Add the tables of batches."""
    op.create_table(
        "batches",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("content_key", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("webhook_url", sa.Text),
        sa.Column("metadata", JSON),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("noticed_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
        sa.UniqueConstraint("client", "idempotency_key", name="uq_batches_client_idempotency_key"),
    )
    op.create_index("ix_batches_noticed", "batches", ["noticed_at"])
    op.create_table(
        "batch_jobs",
        sa.Column("batch_id", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "position", name="pk_batch_jobs"),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name="fk_batch_jobs_batch_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_batch_jobs_job_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_batch_jobs_job_id", "batch_jobs", ["job_id"])
