"""States of optimizers, kept as models and batches are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.drop_constraint("ck_blobs_kind", "blobs")
    op.create_check_constraint("ck_blobs_kind", "blobs", "kind IN ('models', 'batches', 'optimizer_states')")
    op.add_column("analyses", sa.Column("optimizer_state", sa.Text))
    present = sa.text("optimizer_state IS NOT NULL")
    op.create_index(
        "ix_analyses_tenant_optimizer_state", "analyses", ["tenant", "optimizer_state"], postgresql_where=present
    )


def downgrade() -> None:
    op.drop_index("ix_analyses_tenant_optimizer_state", "analyses")
    op.drop_column("analyses", "optimizer_state")
    op.execute(
        "INSERT INTO leftovers (kind, sha256) SELECT DISTINCT kind, sha256 FROM blobs WHERE kind = 'optimizer_states'"
        " ON CONFLICT DO NOTHING"
    )
    op.execute("DELETE FROM blobs WHERE kind = 'optimizer_states'")
    op.drop_constraint("ck_blobs_kind", "blobs")
    op.create_check_constraint("ck_blobs_kind", "blobs", "kind IN ('models', 'batches')")
