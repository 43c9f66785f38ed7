"""What an ingress keeps of its jobs: who waits for them, their webhooks, their warnings."""

import sqlalchemy as sa
from alembic import op

revision = "0002_jobs_of_an_ingress"
down_revision = "0001"

JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "ingress_jobs",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("wanted_until", sa.Double, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("uncounted", sa.Integer, nullable=False),
        sa.Column("queue_job_id", sa.Text),
        sa.Column("warnings", JSON, nullable=False),
        sa.Column("run_warnings", JSON, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_ingress_jobs_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_ingress_jobs")),
    )
    op.create_table(
        "subscribers",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("webhook_url", sa.Text, nullable=False),
        sa.Column("metadata", JSON),
        sa.Column("is_notified", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_subscribers_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "webhook_url", name=op.f("pk_subscribers")),
    )
    op.create_table("probe", sa.Column("room", sa.LargeBinary, nullable=False))
