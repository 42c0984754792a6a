"""Table of the tokens of badges."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import DateTime, Text, Uuid, func
from sqlalchemy.orm import Mapped, mapped_column

from service.database.engine import Base


class BadgeRow(Base):
    __tablename__ = "badges"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
    tenant: Mapped[str] = mapped_column(Text)
    label: Mapped[str] = mapped_column(Text)
    """Label of the series that the token reads."""
    sha256: Mapped[str] = mapped_column(Text)
    """Hash of the token, which is stored nowhere."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
