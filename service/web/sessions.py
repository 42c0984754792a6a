"""Sessions of users who have signed in with an API key.

The cookie holds 256 random bits; the database holds their hash and the hash of the key. Reading the database therefore
does not allow signing in, and removing a key from WSB_API_KEYS ends its sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import DateTime, Text, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from service.database.engine import Base
from service.keys import ApiKey

COOKIE = "wsb"
_TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_\-]{1,64}")


class SessionRow(Base):
    __tablename__ = "sessions"

    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    key_sha256: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@dataclass(frozen=True)
class Session:
    """Session of a signed-in user."""

    key: ApiKey
    token: str

    @property
    def csrf(self) -> str:
        """Token that forms of this session carry and pages of other sites can't know."""
        return hmac.new(self.token.encode(), b"csrf", hashlib.sha256).hexdigest()

    def is_csrf(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.csrf.encode())


async def begin(session: AsyncSession, key_sha256: str, *, hours: float) -> str:
    """Begin a session and return its token; deletes expired sessions."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    await session.execute(delete(SessionRow).where(SessionRow.expires_at < func.now()))
    expires_at = func.now() + timedelta(hours=hours)
    session.add(SessionRow(sha256=_hash(token), key_sha256=key_sha256, expires_at=expires_at))
    return token


async def find(session: AsyncSession, token: str, keys: Sequence[ApiKey]) -> Session | None:
    """Find a session that has not expired and whose key is still accepted."""
    alive = select(SessionRow.key_sha256).where(SessionRow.sha256 == _hash(token), SessionRow.expires_at > func.now())
    key_sha256 = await session.scalar(alive)
    key = next((key for key in keys if key.sha256 == key_sha256 and not key.has_expired), None)
    return None if key is None else Session(key, token)


async def end(session: AsyncSession, token: str) -> None:
    await session.execute(delete(SessionRow).where(SessionRow.sha256 == _hash(token)))


def token_in(connection: HTTPConnection) -> str | None:
    """Return the token in the browser's cookie, if there is one."""
    # Not connection.cookies: undoing the quotes of a long cookie takes time that grows with the square of its length.
    for header in connection.headers.getlist("cookie"):
        for pair in header.split(";"):
            name, _, token = pair.strip().partition("=")
            if name == COOKIE and _TOKEN.fullmatch(token):
                return token
    return None


def set_cookie(request: Request, response: Response, token: str, *, hours: float) -> None:
    """Set the cookie; the browser sends it only to this service, and scripts can't read it."""
    response.set_cookie(
        COOKIE,
        token,
        max_age=round(hours * 3600),
        path=request.scope.get("root_path") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def clear_cookie(request: Request, response: Response) -> None:
    response.delete_cookie(COOKIE, path=request.scope.get("root_path") or "/", httponly=True, samesite="strict")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
