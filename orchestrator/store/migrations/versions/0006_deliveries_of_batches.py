"""Deliveries of the end of a batch; webhooks of an ingress move to the tables of all webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0006_deliveries_of_batches"
down_revision = "0005_batches"

# Those that have been sent are done. The ends of jobs that nobody was told of are told at the start
# of the ingress.
MOVE = """
INSERT INTO webhooks (job_id, url, metadata)
SELECT job_id, webhook_url, metadata FROM subscribers WHERE NOT is_notified
ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    """Let a delivery be about a batch, and drop the second table of webhooks."""
    with op.batch_alter_table("deliveries") as table:
        table.alter_column("job_id", existing_type=sa.Text, nullable=True)
        table.add_column(sa.Column("batch_id", sa.Text))
        table.create_foreign_key(
            "fk_deliveries_batch_id", "batches", ["batch_id"], ["id"], ondelete="CASCADE"
        )
    op.create_index("ix_deliveries_batch", "deliveries", ["batch_id"])
    op.execute(MOVE)
    op.drop_table("subscribers")
