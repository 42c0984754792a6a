"""Totals that outlive analyses: how they ended, why they failed, how long their phases took."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# Deferred, so that the row of a total, which many transactions update, is locked only during a commit.
_COUNT_ENDED = """
CREATE FUNCTION count_ended_analysis() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO totals (metric, label, bucket, count, seconds) VALUES ('ended', NEW.state, 'Infinity', 1, 0)
    ON CONFLICT (metric, label, bucket) DO UPDATE SET count = totals.count + 1;
    RETURN NULL;
END
$$
"""
_ON_ENDED = """
CREATE CONSTRAINT TRIGGER count_ended AFTER UPDATE OF state ON analyses DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (OLD.state IN ('queued', 'running', 'cancelling') AND NEW.state NOT IN ('queued', 'running', 'cancelling'))
EXECUTE FUNCTION count_ended_analysis()
"""


def upgrade() -> None:
    op.create_table(
        "totals",
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("bucket", sa.Double, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("metric", "label", "bucket", name="pk_totals"),
    )
    op.execute(_COUNT_ENDED)
    op.execute(_ON_ENDED)


def downgrade() -> None:
    op.execute("DROP TRIGGER count_ended ON analyses")
    op.execute("DROP FUNCTION count_ended_analysis")
    op.drop_table("totals")
