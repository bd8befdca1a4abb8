"""The bearer token that write calls must present. It is never logged and never part of an error."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from kvwattd.api.problems import WriteRefused

MIN_CHARACTERS = 16
_MAX_BYTES = 4096
_BEARER = HTTPBearer(auto_error=False, description="Token from the file at `api.token_file`.")
_HOW = (
    "write calls need a token: put 16 characters or more into a file that only the daemon can read "
    "(openssl rand -hex 32 > FILE; chmod 600 FILE), name it at api.token_file, and restart kvwatt"
)


class TokenFile:
    """The token in a file, read again whenever the file changes. Raises WriteRefused."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._token = b""

    def check(self, presented: str | None) -> None:
        """Accept `presented` in constant time, or raise."""
        expected = self._expected()
        if presented is None:
            raise WriteRefused(401, "this call changes something and needs a token", "Bearer <token>")
        if not hmac.compare_digest(presented.encode("utf-8", "surrogateescape"), expected):
            raise WriteRefused(401, "the token is not valid", "the token in the file at api.token_file")

    def _expected(self) -> bytes:
        if self._path is None:
            raise WriteRefused(403, "api.token_file is not set", _HOW)
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                with self._path.open("rb") as file:
                    self._token = file.read(_MAX_BYTES).strip()
                self._stamp = stamp
        except OSError as error:
            detail = f"the token file {self._path} cannot be read: {error.strerror}"
            raise WriteRefused(
                403, detail, "a file that the daemon can read, named at api.token_file"
            ) from error
        if len(self._token) < MIN_CHARACTERS:
            detail = f"the token in {self._path} is shorter than {MIN_CHARACTERS} characters"
            raise WriteRefused(403, detail, f"a token of {MIN_CHARACTERS} characters or more")
        return self._token


def require_token(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> None:
    """Dependency of every write call. Not async: FastAPI runs it in a thread, where a file may be read."""
    token: TokenFile = request.app.state.token
    token.check(credentials.credentials if credentials else None)
