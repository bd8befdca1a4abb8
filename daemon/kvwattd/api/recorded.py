"""Routes that change something: every call, done or refused, goes to the audit log."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from kvwattd.api.auth import Access, client_of, may_write, who_of
from kvwattd.api.ports import Rejected, UnknownInstance
from kvwattd.api.problems import Refused, response_to

TOO_MANY = 429


def changed(request: Request, before: object, after: object) -> None:
    """Tell what the call did, for the audit log."""
    request.state.before, request.state.after = _plain(before), _plain(after)


class RecordedRoute(APIRoute):
    """Asks for a token and records how each call ended.

    Calls over the rate are only counted: they would fill the disk.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def recorded(request: Request) -> Response:
            access: Access = request.app.state.access
            try:
                await may_write(request)
                response = await handle(request)
            except Exception as error:
                status = response_to(error).status_code
                access.count(status)
                if status != TOO_MANY:
                    await _record(access, request, status, _reason(error))
                raise
            await _record(access, request, response.status_code, None)
            return response

        return recorded


async def _record(access: Access, request: Request, status: int, detail: str | None) -> None:
    before, after = getattr(request.state, "before", None), getattr(request.state, "after", None)
    action = f"{request.method} {request.url.path}"
    await access.audit.record(who_of(request), client_of(request), action, status, before, after, detail)


def _reason(error: Exception) -> str:
    """Only what we worded ourselves: other errors may quote what was sent, even a token in a wrong place."""
    return str(error) if isinstance(error, (Refused, Rejected, UnknownInstance)) else type(error).__name__


def _plain(value: object) -> object:
    return value.model_dump(mode="json", exclude_none=True) if isinstance(value, BaseModel) else value
