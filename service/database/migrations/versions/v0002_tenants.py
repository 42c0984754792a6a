"""Tenants; keys of idempotent requests; reuse of reports; when a file was last sent; policies and verdicts.

What was stored before belongs to the tenant of a service without keys.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for table in ("blobs", "analyses"):
        op.add_column(table, sa.Column("tenant", sa.Text, nullable=False, server_default="default"))
        # A row without a tenant must not be assigned to one silently.
        op.alter_column(table, "tenant", server_default=None)
    _upgrade_blobs()
    for column in ("policy", "baseline", "verdict"):
        op.add_column("analyses", sa.Column(column, sa.JSON(none_as_null=True)))
    op.add_column("analyses", sa.Column("fingerprint", sa.Text))
    op.add_column("analyses", sa.Column("reused_from", sa.Uuid))
    op.create_index("ix_analyses_tenant_sequence", "analyses", ["tenant", "sequence"])
    op.create_index(
        "ix_analyses_fingerprint",
        "analyses",
        ["tenant", "fingerprint", "sequence"],
        postgresql_where=sa.text("state = 'succeeded'"),
    )
    op.create_index(
        "ix_analyses_finished_at", "analyses", ["finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL")
    )
    op.create_index("ix_analyses_tenant_model", "analyses", ["tenant", "model"])
    op.create_index("ix_analyses_tenant_batch", "analyses", ["tenant", "batch"])
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("analysis", sa.Uuid, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key", name="pk_idempotency_keys"),
        sa.ForeignKeyConstraint(
            ["analysis"], ["analyses.id"], ondelete="CASCADE", name="fk_idempotency_keys_analysis_analyses"
        ),
    )
    # For the foreign key: deleting an analysis looks up its keys.
    op.create_index("ix_idempotency_keys_analysis", "idempotency_keys", ["analysis"])


def _upgrade_blobs() -> None:
    moment = sa.DateTime(timezone=True)
    op.drop_constraint("pk_blobs", "blobs", type_="primary")
    op.create_primary_key("pk_blobs", "blobs", ["kind", "sha256", "tenant"])
    op.add_column("blobs", sa.Column("uploaded_at", moment, nullable=False, server_default=sa.text("now()")))
    op.execute("UPDATE blobs SET uploaded_at = created_at")
    op.create_index("ix_blobs_uploaded_at", "blobs", ["uploaded_at"])


def downgrade() -> None:
    """Merge the data of all tenants, as before there were tenants."""
    op.drop_table("idempotency_keys")
    for index in ("tenant_batch", "tenant_model", "finished_at", "fingerprint", "tenant_sequence"):
        op.drop_index(f"ix_analyses_{index}", "analyses")
    for column in ("reused_from", "fingerprint", "verdict", "baseline", "policy", "tenant"):
        op.drop_column("analyses", column)
    op.drop_index("ix_blobs_uploaded_at", "blobs")
    op.drop_column("blobs", "uploaded_at")
    op.execute(
        "DELETE FROM blobs USING blobs AS other"
        " WHERE blobs.kind = other.kind AND blobs.sha256 = other.sha256 AND blobs.tenant > other.tenant"
    )
    op.drop_constraint("pk_blobs", "blobs", type_="primary")
    op.create_primary_key("pk_blobs", "blobs", ["kind", "sha256"])
    op.drop_column("blobs", "tenant")
