"""What people call an analysis and its files, and the numbers of its report that lists show."""

from __future__ import annotations

import json
import re
from typing import Any

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

_PLAIN_DEVICE = re.compile(r"[a-zA-Z0-9:+._-]{1,64}")


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("analyses", sa.Column(name, kind, nullable=True))
    _fill(op.get_bind())


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("analyses", name)


def _fill(connection: sa.Connection) -> None:
    """Copy the numbers of stored reports; not in SQL, since Postgres refuses JSON with a null character in a text."""
    body = sa.text("SELECT body FROM reports WHERE analysis = :analysis")
    for analysis in connection.execute(sa.text("SELECT analysis FROM reports")).scalars().all():
        numbers = _numbers(json.loads(connection.execute(body, {"analysis": analysis}).scalar_one()))
        settings = ", ".join(f"{name} = :{name}" for name in numbers)
        update = sa.text(f"UPDATE analyses SET {settings} WHERE id = :analysis")  # noqa: S608 - names from this file
        connection.execute(update, {"analysis": analysis, **numbers})


def _numbers(report: dict[str, Any]) -> dict[str, Any]:
    bounds = report.get("bounds") or {}
    part = report.get("enclosure") or bounds.get("wolkowicz_styan") or {}
    closest, loss = part.get("lambda_max") or {}, report.get("loss") or {}
    device = (report.get("engine") or {}).get("device") or ""
    return {
        "lambda_max_lower": closest.get("lower"),
        "lambda_max_upper": closest.get("upper"),
        "loss": loss.get("value"),
        "accuracy": loss.get("accuracy"),
        "parameters": ((report.get("model") or {}).get("parameters") or {}).get("count"),
        "device": device if _PLAIN_DEVICE.fullmatch(device) else None,
        "seconds": (report.get("timings") or {}).get("total"),
        "reliable": all(check["passed"] for check in report.get("checks") or ()),
    }
