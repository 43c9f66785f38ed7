"""What scaling learns, decides and holds; the frames of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0003_scaling"
down_revision = "0002_jobs_of_an_ingress"

JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Add a column to `jobs`, and three tables."""
    op.add_column("jobs", sa.Column("frames", sa.Integer))
    op.create_table(
        "learnt",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("total", sa.Double, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("learnt_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_learnt"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("made_at", sa.Double, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("gpu_class", sa.Text, nullable=False),
        sa.Column("have", sa.Integer, nullable=False),
        sa.Column("want", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
    )
    op.create_index("ix_decisions_made_at", "decisions", ["made_at"])
    op.create_table(
        "loops",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("held_until", sa.Double, nullable=False),
        sa.Column("stepped_at", sa.Double),
        sa.Column("error", sa.Text),
        sa.Column("facts", JSON),
        sa.PrimaryKeyConstraint("name", name="pk_loops"),
    )
