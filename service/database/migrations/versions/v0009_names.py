"""What people call an analysis and its files, and the numbers of its report that lists show."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_COLUMNS = {
    "name": sa.Text,
    "model_name": sa.Text,
    "batch_name": sa.Text,
    "lambda_max_lower": sa.Double,
    "lambda_max_upper": sa.Double,
    "loss": sa.Double,
    "accuracy": sa.Double,
    "parameters": sa.BigInteger,
    "device": sa.Text,
    "seconds": sa.Double,
    "reliable": sa.Boolean,
}

# OFFSET 0 keeps a report from being parsed once for each column. Devices are taken if they are plain text: anything
# else could hold what a text of Postgres can't.
_FILL = """
UPDATE analyses SET
    lambda_max_lower = coalesce(
        doc #>> '{enclosure,lambda_max,lower}', doc #>> '{bounds,wolkowicz_styan,lambda_max,lower}'
    )::double precision,
    lambda_max_upper = coalesce(
        doc #>> '{enclosure,lambda_max,upper}', doc #>> '{bounds,wolkowicz_styan,lambda_max,upper}'
    )::double precision,
    loss = (doc #>> '{loss,value}')::double precision,
    accuracy = (doc #>> '{loss,accuracy}')::double precision,
    parameters = (doc #>> '{model,parameters,count}')::bigint,
    device = CASE
        WHEN (doc #> '{engine,device}')::text ~ '^"[a-zA-Z0-9:+._-]{1,64}"$' THEN doc #>> '{engine,device}'
    END,
    seconds = (doc #>> '{timings,total}')::double precision,
    reliable = NOT EXISTS (SELECT FROM json_array_elements(doc -> 'checks') AS item WHERE item ->> 'passed' = 'false')
FROM (SELECT analysis, body::json AS doc FROM reports OFFSET 0) AS stored
WHERE stored.analysis = analyses.id
"""


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("analyses", sa.Column(name, kind, nullable=True))
    op.execute(sa.text(_FILL.replace(":", r"\:")))


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("analyses", name)
