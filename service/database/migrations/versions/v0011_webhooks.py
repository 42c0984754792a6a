"""Webhooks, and what is still to be delivered to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    now, moment = sa.text("now()"), sa.DateTime(timezone=True)
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_at", moment, nullable=False, server_default=now),
        sa.Column("disabled_at", moment),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
    )
    op.create_index("ix_webhooks_tenant", "webhooks", ["tenant"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("webhook", sa.Uuid, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_at", moment, nullable=False, server_default=now),
        sa.Column("due_at", moment, nullable=False, server_default=now),
        sa.Column("leased_until", moment),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.ForeignKeyConstraint(
            ["webhook"], ["webhooks.id"], ondelete="CASCADE", name="fk_deliveries_webhook_webhooks"
        ),
    )
    op.create_index("ix_deliveries_webhook_due_at", "deliveries", ["webhook", "due_at"])


def downgrade() -> None:
    for table in ("deliveries", "webhooks"):
        op.drop_table(table)
