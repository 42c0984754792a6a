"""Responses about models and batches."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from service.blobs.repository import IDENTIFIER, identifier
from service.blobs.table import BlobRow


class BlobFile(BaseModel):
    """One file of a model or batch."""

    name: str = Field(
        description="`model` or `batch`; for a data file, the name by which the model refers to it.",
        examples=["model.onnx.data"],
    )
    size: int = Field(description="Size in bytes.")
    sha256: str = Field(description="Hex digest of the file.")


class Blob(BaseModel):
    """A stored model or batch, named by its content."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "size": 407812,
                    "format": "onnx",
                    "created_at": "2026-01-05T09:30:00Z",
                    "files": [
                        {
                            "name": "model",
                            "size": 407812,
                            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                        }
                    ],
                }
            ]
        }
    )

    id: str = Field(
        description="`sha256:` and a hex digest: of the file; of a model with data files, of the lines"
        " `name size sha256` of its `files`, each followed by a newline.",
        pattern=IDENTIFIER.pattern,
    )
    size: int = Field(description="Size of all files in bytes.")
    format: str = Field(description="Detected format of the content.")
    created_at: datetime = Field(description="When the content was first stored.")
    files: list[BlobFile] = Field(
        description="All files: the model or batch, then the model's data files in the order of their names."
    )

    @classmethod
    def of(cls, row: BlobRow) -> Blob:
        return cls(
            id=identifier(row.sha256),
            size=row.size,
            format=row.format,
            created_at=row.created_at,
            files=[BlobFile.model_validate(file) for file in row.files],
        )


class BlobPage(BaseModel):
    """One page of models or batches, newest first."""

    items: list[Blob]
    next: str | None = Field(description="URL of the next page; null on the last page.")
