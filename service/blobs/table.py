"""Table of models, batches and states of optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict, cast

from sqlalchemy import JSON, BigInteger, DateTime, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from service.database.engine import Base
from service.storage.store import Kind

NOUNS: dict[Kind, str] = {"models": "model", "batches": "batch", "optimizer_states": "optimizer_state"}


class StoredFile(TypedDict):
    """One file of a model or batch."""

    name: str
    """``model`` or ``batch``; of a data file, the name by which the model refers to it."""
    size: int
    sha256: str


class BlobRow(Base):
    __tablename__ = "blobs"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    """One row per tenant that has sent the content; they share the file, which is deleted with the last row."""
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes of all its files."""
    format: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    uploaded_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    """When the tenant last sent the content."""
    model_files: Mapped[list[StoredFile] | None] = mapped_column(JSON(none_as_null=True))
    """The files of a model with external data, the model's own first; null for a blob of one file."""

    @property
    def files(self) -> Sequence[StoredFile]:
        """All files."""
        return files_of(cast(Kind, self.kind), self.sha256, self.model_files, size=self.size)

    @property
    def shared_model(self) -> str | None:
        """Digest below which the files are stored, if there are several."""
        return None if self.model_files is None else self.sha256


def files_of(
    kind: Kind, sha256: str, model_files: Sequence[StoredFile] | None, *, size: int = 0
) -> Sequence[StoredFile]:
    """Return all files of a blob; those of a model with data files, or the only one, of this size."""
    return model_files or [StoredFile(name=NOUNS[kind], size=size, sha256=sha256)]


def blob_lock(kind: Kind, sha256: str) -> str:
    """Name of the lock under which rows and files of a blob are created and removed."""
    return f"blob {kind}/{sha256}"
