"""Blobs, analyses, reports and workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_STATES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled", "timed_out")


def upgrade() -> None:
    now = sa.text("now()")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "blobs",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("kind", "sha256", name="pk_blobs"),
        sa.CheckConstraint("kind IN ('models', 'batches')", name="ck_blobs_kind"),
    )
    op.create_table(
        "analyses",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("labels", postgresql.JSONB, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("timeout_s", sa.Float, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("progress", sa.JSON(none_as_null=True)),
        sa.Column("error", sa.JSON(none_as_null=True)),
        sa.Column("job_id", sa.BigInteger),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.Column("created_at", moment, nullable=False, server_default=now),
        sa.Column("started_at", moment),
        sa.Column("finished_at", moment),
        sa.PrimaryKeyConstraint("id", name="pk_analyses"),
        sa.UniqueConstraint("sequence", name="uq_analyses_sequence"),
        sa.CheckConstraint("state IN ({})".format(", ".join(f"'{state}'" for state in _STATES)), "ck_analyses_state"),
    )
    live = sa.text("state IN ('queued', 'running', 'cancelling')")
    op.create_index("ix_analyses_live", "analyses", ["state"], postgresql_where=live)
    op.create_index("ix_analyses_state_sequence", "analyses", ["state", "sequence"])
    op.create_index("ix_analyses_labels", "analyses", ["labels"], postgresql_using="gin")
    op.create_table(
        "reports",
        sa.Column("analysis", sa.Uuid, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("analysis", name="pk_reports"),
        sa.ForeignKeyConstraint(["analysis"], ["analyses.id"], ondelete="CASCADE", name="fk_reports_analysis_analyses"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("process", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("engine_version", sa.Text, nullable=False),
        sa.Column("protections", sa.JSON, nullable=False),
        sa.Column("started_at", moment, nullable=False, server_default=now),
        sa.Column("seen_at", moment, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )


def downgrade() -> None:
    for table in ("workers", "reports", "analyses", "blobs"):
        op.drop_table(table)
