"""Who may read and who may change what: dependencies of the calls. No token reaches a log or an error."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from kvwattd.api.limits import RateLimit
from kvwattd.api.problems import Refused
from kvwattd.api.schemas import SecurityView
from kvwattd.api.tokens import NEXT, Scope, TokenFile
from kvwattd.audit import AuditLog
from kvwattd.config_values import is_loopback

WRITES_PER_MINUTE = 60
STRANGER = "anonymous"
UNIX_SOCKET = "unix socket"
SCHEME = HTTPBearer(auto_error=False, description="Token with an entry in the file at `api.token_file`.")
Presented = Annotated[HTTPAuthorizationCredentials | None, Depends(SCHEME)]


@dataclass
class Access:
    """What the API needs to know of tokens, limits and the audit log."""

    tokens: TokenFile
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))
    writes: RateLimit = field(default_factory=lambda: RateLimit(WRITES_PER_MINUTE))
    read_access: Literal["loopback", "token", "open"] = "loopback"
    refused: dict[int, int] = field(default_factory=dict)  # status -> how often a call was refused

    def count(self, status: int) -> None:
        self.refused[status] = self.refused.get(status, 0) + 1


def client_of(request: Request) -> str:
    """The address of the caller; calls over the unix socket have none."""
    return request.client.host if request.client else UNIX_SOCKET


def who_of(request: Request) -> str:
    """The name of the caller's token, once it was looked at."""
    return str(getattr(request.state, "who", STRANGER))


async def may_read(request: Request, presented: Presented) -> None:
    """Dependency of every reading call. Raises Refused."""
    access: Access = request.app.state.access
    if access.read_access == "open" or (access.read_access == "loopback" and _from_here(request)):
        return
    await _permit(request, presented, Scope.READ)


async def may_control(request: Request, presented: Presented) -> None:
    """Dependency of every call that changes something, and of the audit log. Raises Refused."""
    await _permit(request, presented, Scope.CONTROL)


async def may_write(request: Request) -> None:
    """`may_control`, at a bounded rate; strangers share one allowance. Raises Refused.

    Called before anything of the body is read: strangers cost nothing but this.
    """
    access: Access = request.app.state.access
    try:
        await _permit(request, await SCHEME(request), Scope.CONTROL)
    finally:
        wait_s = access.writes.wait_s(who_of(request))
        if wait_s > 0:
            raise Refused(
                429,
                "too many calls that change something",
                "fewer of them: api.writes_per_minute",
                {"Retry-After": str(math.ceil(wait_s))},
            )


async def known_query(request: Request) -> None:
    """Dependency of every call: a query parameter that means nothing here is refused, not ignored."""
    known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        told = f"Input should be one of: {', '.join(sorted(known)) or 'no parameter'}"
        error = {"type": "extra_forbidden", "loc": ("query", unknown[0]), "msg": told, "input": unknown[0]}
        raise RequestValidationError([error])


def _from_here(request: Request) -> bool:
    """Over the unix socket, or from this machine to an address of this machine.

    The second half keeps a web page out whose name was made to point to 127.0.0.1 (DNS rebinding).
    """
    if request.client is None:
        return True
    try:
        # Not request.url: where the header is no valid name, that tells our own address instead.
        named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:  # no address at all, such as "[::1"
        return False
    return is_loopback(request.client.host) and is_loopback(named)


async def _permit(request: Request, presented: HTTPAuthorizationCredentials | None, needed: Scope) -> None:
    access: Access = request.app.state.access
    if access.tokens.path is None:
        raise Refused(403, "api.token_file is not set, so that no token is valid", f"set it and {NEXT}")
    if presented is None or not presented.credentials:
        raise Refused(401, f"this call needs a token of scope {needed}", "Authorization: Bearer <token>")
    entry = await asyncio.to_thread(access.tokens.identify, presented.credentials)
    if entry is None:
        raise Refused(401, "the token is not valid", "a token with an entry in the file at api.token_file")
    request.state.who = entry.name
    if entry.scope is not Scope.CONTROL and needed is Scope.CONTROL:
        raise Refused(403, f"the token {entry.name!r} may only read", "a token of scope control")


def security_view(access: Access) -> SecurityView:
    """What the status tells of tokens and audit."""
    return SecurityView(
        token_alarm=access.tokens.alarm,
        audit_records_total=access.audit.records,
        audit_errors_total=access.audit.errors,
        audit_error=access.audit.last_error,
        refused_total=access.refused,
    )
