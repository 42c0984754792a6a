"""Tokens of badges."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "badges",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("id", name="pk_badges"),
        sa.UniqueConstraint("sha256", name="uq_badges_sha256"),
    )
    op.create_index("ix_badges_tenant", "badges", ["tenant"])


def downgrade() -> None:
    op.drop_table("badges")
