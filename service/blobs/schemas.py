"""Responses about models and batches."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from service.blobs.repository import IDENTIFIER, BlobRow, identifier


class Blob(BaseModel):
    """A stored file, named by its content."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "size": 407812,
                    "format": "onnx",
                    "created_at": "2026-01-05T09:30:00Z",
                }
            ]
        }
    )

    id: str = Field(description="`sha256:` and the hex digest of the content.", pattern=IDENTIFIER.pattern)
    size: int = Field(description="Size in bytes.")
    format: str = Field(description="Detected format of the content.")
    created_at: datetime = Field(description="When the content was first stored.")

    @classmethod
    def of(cls, row: BlobRow) -> Blob:
        return cls(id=identifier(row.sha256), size=row.size, format=row.format, created_at=row.created_at)
