"""Turns that tenants take at the queue, and files that are still to be removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("ended", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("device", "tenant", name="pk_turns"),
    )
    op.create_table(
        "leftovers",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("model_files", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("kind", "sha256", name="pk_leftovers"),
    )


def downgrade() -> None:
    for table in ("leftovers", "turns"):
        op.drop_table(table)
