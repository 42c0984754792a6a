"""Memory limit of a worker's analyses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # Null for workers of an older version, which run alongside newer ones during an upgrade.
    op.add_column("workers", sa.Column("memory_bytes", sa.BigInteger, nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "memory_bytes")
