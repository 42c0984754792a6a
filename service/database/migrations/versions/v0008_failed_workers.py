"""Why a worker whose device failed has left."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("workers", sa.Column("problem", sa.Text, nullable=True))


def downgrade() -> None:
    """Forget workers that have left, which earlier versions would count as live."""
    op.execute("DELETE FROM workers WHERE problem IS NOT NULL")
    op.drop_column("workers", "problem")
