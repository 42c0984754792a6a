"""The files of a model with external data."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("blobs", sa.Column("model_files", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    """Forget models of several files, which earlier versions can't find."""
    op.execute("DELETE FROM blobs WHERE model_files IS NOT NULL")
    op.drop_column("blobs", "model_files")
