"""Problems of models and batches."""

from __future__ import annotations

from service.errors import (
    BodyTooLargeError,
    EmptyBodyError,
    MalformedRequestError,
    NotFoundError,
    ServiceError,
    UnsupportedMediaTypeError,
)
from service.http.bodies import TooManyUploadsError, UploadTooSlowError
from service.storage.store import InsufficientStorageError, StorageUnavailableError


class UnknownFormatError(ServiceError, status=415, code="unknown_format", title="The file format is not accepted"): ...


class TruncatedFileError(ServiceError, status=422, code="truncated_file", title="The file is truncated"): ...


class BlobNotFoundError(NotFoundError, code="blob_not_found", title="No such model or batch"): ...


class BlobInUseError(
    ServiceError, status=409, code="blob_in_use", title="An analysis that has not ended needs this file"
): ...


class TenantStorageFullError(
    ServiceError, status=507, code="tenant_storage_full", title="The tenant's models and batches have no more room"
): ...


UPLOAD_ERRORS = (
    MalformedRequestError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
    UnknownFormatError,
    EmptyBodyError,
    TruncatedFileError,
    UploadTooSlowError,
    TooManyUploadsError,
    InsufficientStorageError,
    TenantStorageFullError,
    StorageUnavailableError,
)
"""Every problem that receiving and storing a file can end in."""
