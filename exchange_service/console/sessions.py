"""Who has signed in: a sealed cookie with the person's own token, and links that sign in once.

The service keeps no session. The cookie holds the token, sealed with a key that only the service has; each call carries
that token, so a token that is withdrawn ends its sessions at once.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import TypedDict

from cachetools import TTLCache
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from starlette.requests import Request
from starlette.responses import Response

from exchange_service import clock
from exchange_service.addresses import host_of, is_loopback_host

# Seconds after which a person has to sign in again.
LIFETIME = 12 * 3600
# What fits into a browser's cookie of 4 KiB with the sealing around it.
LONGEST_TOKEN = 2400
_COOKIE = "exchange_service_session"
_MOST_ENDED = 100_000
_MOST_LINKS = 16
_PURPOSE = b"exchange-service console session v1"


@dataclass(frozen=True, slots=True)
class Session:
    """A person who has signed in. `user` is whose accounts they look at; empty if they did not say."""

    id: str
    user: str = ""
    # When it ends, in seconds since the epoch.
    expires: float = 0.0
    # Empty on a service without authentication.
    token: str = field(default="", repr=False)


class _CookieScope(TypedDict):
    key: str
    path: str
    secure: bool


class Sessions:
    """Makes cookies and reads them. `secure`: the pages are served over TLS, and not only through a proxy's."""

    def __init__(self, hash_key: bytes, *, secure: bool) -> None:
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(hash_key)
        self._fernet = Fernet(base64.urlsafe_b64encode(derived))
        self._secure = secure
        # Sessions that were signed out, for as long as a copy of their cookie could be used.
        self._ended: TTLCache[str, bool] = TTLCache(_MOST_ENDED, LIFETIME)

    def start(self, request: Request, response: Response, *, token: str = "", user: str = "") -> None:
        """Set a new session's cookie on the response, in place of any other."""
        content = json.dumps({"id": secrets.token_hex(16), "token": token, "user": user})
        sealed = self._fernet.encrypt_at_time(content.encode(), int(clock.wall())).decode()
        response.set_cookie(value=sealed, max_age=LIFETIME, httponly=True, samesite="strict", **self._scope_of(request))

    def read(self, request: Request) -> Session | None:
        """The session of the request's cookie; None if there is no cookie, or one that is forged, old or signed out."""
        sealed = request.cookies.get(self._scope_of(request)["key"], "")
        if not sealed:
            return None
        try:
            content = json.loads(self._fernet.decrypt_at_time(sealed.encode(), LIFETIME, int(clock.wall())))
        except (InvalidToken, ValueError):
            return None
        expires = self._fernet.extract_timestamp(sealed.encode()) + LIFETIME
        session = Session(content["id"], content["user"], float(expires), content["token"])
        return session if self.is_live(session) else None

    def is_live(self, session: Session) -> bool:
        """Whether it is neither signed out nor too old."""
        return session.id not in self._ended and clock.wall() < session.expires

    def end(self, request: Request, response: Response) -> None:
        """Sign the request's session out: its cookie is removed, and a copy of it does not open here any more."""
        session = self.read(request)
        if session is not None:
            self._ended[session.id] = True
        response.delete_cookie(httponly=True, samesite="strict", **self._scope_of(request))

    def _scope_of(self, request: Request) -> _CookieScope:
        """The cookie's name, and whether it is sent over TLS alone."""
        # Without TLS of ours only this machine reaches us; a browser that knows us by another name has come by a proxy.
        secure = self._secure or not is_loopback_host(host_of(request.headers.get("host", "")))
        # The browser takes a cookie of this prefix from this very host alone, and only over TLS.
        return {"key": f"__Host-{_COOKIE}" if secure else _COOKIE, "path": "/", "secure": secure}


class LoginLinks:
    """Keys of links that sign in once each, for a service without authentication, which only this machine reaches."""

    def __init__(self) -> None:
        self._users: dict[str, str] = {}

    def new_key(self, user: str = "") -> str:
        """A key that opens one session, which shows this user's accounts. Of many keys the oldest is forgotten."""
        if len(self._users) >= _MOST_LINKS:
            self._users.pop(next(iter(self._users)))
        key = secrets.token_urlsafe(32)
        self._users[key] = user
        return key

    def use(self, key: str) -> str | None:
        """The user of this key, which is then used up; None for another key."""
        given = key.encode("utf-8", "replace")
        for known in self._users:
            if hmac.compare_digest(known.encode(), given):
                return self._users.pop(known)
        return None
