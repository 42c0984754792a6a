"""Indexes for lists of analyses that are sorted by the numbers of their reports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

# Read backwards for the largest first, and forwards with equals sorted by age for the smallest first.
_NUMBERS = ("lambda_max_upper", "loss", "accuracy", "parameters", "seconds")
# Of these, many analyses have equal ones, which sorting would have to read all.
_FEW_VALUES = ("accuracy", "parameters")


def upgrade() -> None:
    for name in _NUMBERS:
        op.create_index(f"ix_analyses_tenant_{name}", "analyses", ["tenant", name, "sequence"])
    for name in _FEW_VALUES:
        newest = sa.text("sequence DESC")
        op.create_index(f"ix_analyses_tenant_{name}_newest", "analyses", ["tenant", name, newest])


def downgrade() -> None:
    for name in _FEW_VALUES:
        op.drop_index(f"ix_analyses_tenant_{name}_newest", "analyses")
    for name in _NUMBERS:
        op.drop_index(f"ix_analyses_tenant_{name}", "analyses")
