"""The tables, as SQLAlchemy describes them. Migrations (`migrations/`) create them.

Instants are seconds since 1970 in UTC, by the database's clock. Texts that a client or a worker
sent are data only.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = sa.JSON(none_as_null=True)
Instant: sa.Double[float] = sa.Double()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("client", sa.Text, nullable=False),  # the name of the key that submitted it
    sa.Column("state", sa.Text, nullable=False),
    # What is asked for. The addresses may be signed and are never shown whole.
    sa.Column("video_url", sa.Text, nullable=False),
    sa.Column("audio_url", sa.Text, nullable=False),
    sa.Column("aspect_ratio", sa.Text),
    sa.Column("resolution", sa.Text),
    sa.Column("params", Json),
    sa.Column("content_key", sa.Text, nullable=False),  # digest, without query strings
    sa.Column("metadata", Json),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("deadline", Instant),
    sa.Column("min_vram_gb", sa.Double, nullable=False),
    sa.Column("architectures", sa.Text, nullable=False),  # each between commas; none: all
    sa.Column("due_at", Instant, nullable=False),  # orders the jobs of one client
    # Where it stands.
    sa.Column("run", sa.Integer, nullable=False),  # counts submissions and retries
    sa.Column("attempt", sa.Integer, nullable=False),  # the last one's number; it never falls
    sa.Column("failures", sa.Integer, nullable=False),  # of this run
    sa.Column("interruptions", sa.Integer, nullable=False),  # of this run
    sa.Column("worker_id", sa.Text),
    sa.Column("leased_at", Instant),
    sa.Column("lease_until", Instant),
    sa.Column("unlisted", sa.Integer, nullable=False),  # heartbeats in a row without this job
    sa.Column("frames", sa.Integer),  # of the result, as soon as a worker has said it
    sa.Column("progress", sa.Double, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("counts", Json),  # frames done and in total, from the newest progress report
    # How it ended.
    sa.Column("output_url", sa.Text),
    sa.Column("metrics", Json),
    sa.Column("receipt", Json),  # seconds, frames and dollars, as the worker counted them
    sa.Column("error", sa.Text),
    sa.Column("failure", Json),
    sa.Column("published_attempt", sa.Integer),  # whose upload this service has published
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("queued_at", Instant, nullable=False),  # of this run
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("ended_at", Instant),
    sa.CheckConstraint(
        "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'dead')", name="state"
    ),
    # A lease without its worker, or a running job without a lease, would be lost for ever.
    sa.CheckConstraint(
        "(state = 'running') = (worker_id IS NOT NULL)"
        " AND (worker_id IS NULL) = (lease_until IS NULL)"
        " AND (worker_id IS NULL) = (leased_at IS NULL)",
        name="lease",
    ),
    sa.Index("ix_jobs_queue", "state", "client", "due_at", "id"),
    sa.Index("ix_jobs_newest", "created_at", "id"),
    sa.Index("ix_jobs_worker", "worker_id"),
    sa.Index("ix_jobs_ended", "ended_at"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("buffer_job_id", sa.Text, unique=True),  # a buffer worker's name of this attempt
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("worker_type", sa.Text, nullable=False),
    sa.Column("gpu_class", sa.Text),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("ended_at", Instant),
    sa.Column("ending", sa.Text),  # an `AttemptEnd`; null while it runs
    sa.Column("phase", sa.Text),  # the last that was reported
    sa.Column("error", sa.Text),
    sa.Column("failure", Json),
    sa.Column("uploads_until", Instant),  # its signed addresses end then; null: nothing is left
    sa.Index("ix_attempts_worker", "worker_id", "job_id"),
    sa.Index("ix_attempts_uploads", "uploads_until"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("happened_at", Instant, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("facts", Json),
)

# Who is told when a job ends, each with the metadata that was sent with that address.
webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("url", sa.Text, primary_key=True),
    sa.Column("metadata", Json),
)

# One row for each webhook and each end of its job or batch. It is the queue of deliveries and their
# log.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # the same however often it is sent
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE")),
    sa.Column("batch_id", sa.Text, sa.ForeignKey("batches.id", ondelete="CASCADE")),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("snapshot", Json, nullable=False),  # the job or batch as it was when it ended
    sa.Column("status", sa.Text, nullable=False),  # pending, delivered or failed
    sa.Column("tries", sa.Integer, nullable=False),  # since it was queued, or queued again
    sa.Column("taken", sa.Integer, nullable=False),  # all tries; fences a late result
    sa.Column("log", Json, nullable=False),  # the newest tries: when, answer code, error
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("started_at", Instant, nullable=False),  # of these tries
    sa.Column("due_at", Instant),  # the next try, or the end of the lease of the one that runs
    sa.Column("ended_at", Instant),
    sa.CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
    sa.Index("ix_deliveries_due", "due_at"),
    sa.Index("ix_deliveries_job", "job_id"),
    sa.Index("ix_deliveries_batch", "batch_id"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("client", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column(
        "job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True
    ),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("worker_type", sa.Text, nullable=False),  # main, transient, expensive or buffer
    sa.Column("provider", sa.Text),
    sa.Column("gpu_class", sa.Text),
    sa.Column("capacity", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),  # idle or busy, as it says
    sa.Column("error", sa.Text),  # why it cannot run jobs, as it says
    sa.Column("system_info", Json),
    sa.Column("capabilities", Json),
    sa.Column("is_drained", sa.Boolean, nullable=False),
    sa.Column("first_seen_at", Instant, nullable=False),
    sa.Column("seen_at", Instant, nullable=False, index=True),
    sa.Column("left_at", Instant),  # it said goodbye
    sa.Column("left_because", sa.Text),
)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("client", sa.Text, primary_key=True),
    sa.Column("weight", sa.Double, nullable=False),
    sa.Column("used", sa.Double, nullable=False),  # seconds of service, divided by the weight
    sa.CheckConstraint("weight > 0", name="weight"),
)

# One row: the virtual time at which the last job was given out.
virtual_clock = sa.Table("virtual_clock", metadata, sa.Column("time", sa.Double, nullable=False))

# What an ingress that embeds this store keeps of its jobs in addition. An orchestrator has none.
ingress_jobs = sa.Table(
    "ingress_jobs",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("origin", sa.Text, nullable=False),  # sync, async or claimed: who may end it
    sa.Column("wanted_until", Instant, nullable=False),  # until then an open connection waits
    sa.Column("cancel_requested", sa.Boolean, nullable=False),  # its attempt reads that
    sa.Column("uncounted", sa.Integer, nullable=False),  # attempts before this run, or put back
    sa.Column("queue_job_id", sa.Text),  # the id of the job in the queue of a provider
    sa.Column("warnings", Json, nullable=False),  # of its submissions
    sa.Column("run_warnings", Json, nullable=False),  # of the run that succeeded
)

# Jobs that were submitted together.
batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("content_key", sa.Text, nullable=False),  # digest of what its jobs ask for
    sa.Column("size", sa.Integer, nullable=False),  # a batch with fewer jobs is forgotten
    sa.Column("webhook_url", sa.Text),
    sa.Column("metadata", Json),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("noticed_at", Instant),  # when it was noticed that all had ended
    sa.UniqueConstraint("client", "idempotency_key"),
    sa.Index("ix_batches_noticed", "noticed_at"),
)

batch_jobs = sa.Table(
    "batch_jobs",
    metadata,
    sa.Column(
        "batch_id", sa.Text, sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column(
        "job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True
    ),
)

# Always empty: writing a row and removing it shows whether the database can be written.
probe = sa.Table("probe", metadata, sa.Column("room", sa.LargeBinary, nullable=False))

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # the public part of the key
    sa.Column("kind", sa.Text, nullable=False),  # client or worker
    sa.Column("name", sa.Text, nullable=False),  # a client's name, or the worker's only identity
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),  # scrypt of the secret part
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("revoked_at", Instant),
    sa.CheckConstraint("kind IN ('client', 'worker')", name="kind"),
)

# What is learnt from finished jobs: sums over reports and their weights, both fading.
learnt = sa.Table(
    "learnt",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),  # a `LearntKind`
    sa.Column("name", sa.Text, primary_key=True),  # a GPU class, or a client
    sa.Column("total", sa.Double, nullable=False),
    sa.Column("weight", sa.Double, nullable=False),
    sa.Column("learnt_at", Instant, nullable=False),
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("made_at", Instant, nullable=False, index=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("gpu_class", sa.Text, nullable=False),
    sa.Column("have", sa.Integer, nullable=False),
    sa.Column("want", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("error", sa.Text),  # what the provider said if it did not do it
)

# Loops of which one runs at a time, whatever the number of service processes.
loops = sa.Table(
    "loops",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("held_until", Instant, nullable=False),
    sa.Column("stepped_at", Instant),
    sa.Column("error", sa.Text),  # of the last step
    sa.Column("facts", Json),  # what the last step saw
)
