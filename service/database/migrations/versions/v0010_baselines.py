"""Named baselines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "baselines",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("analysis", sa.Uuid, nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_baselines"),
        # Without ON DELETE: an analysis that is a baseline can't be deleted.
        sa.ForeignKeyConstraint(["analysis"], ["analyses.id"], name="fk_baselines_analysis_analyses"),
    )
    op.create_index("ix_baselines_analysis", "baselines", ["analysis"])


def downgrade() -> None:
    op.drop_table("baselines")
