"""Errors as RFC 9457 problem details: each names the field, its value and what is accepted."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from kvwattd.api.ports import Rejected, UnknownInstance
from kvwattd.api.schemas import ProblemView
from kvwattd.config_errors import accepted_from, dotted

MEDIA_TYPE = "application/problem+json"
_SHOWN_CHARACTERS = 200


class Refused(Exception):  # noqa: N818 (a fact about the request, not a fault of the program)
    """A call that its caller may not make, or not now. Holds no part of any token."""

    def __init__(
        self, status: int, detail: str, accepted: str, headers: dict[str, str] | None = None
    ) -> None:
        self.status = status
        self.detail = detail
        self.accepted = accepted
        self.headers = headers or ({"WWW-Authenticate": "Bearer"} if status == 401 else {})
        super().__init__(detail)


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    field: str | None = None,
    value: object = None,
    accepted: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """`value` is shown as JSON-like text, shortened; it is left out when no field is to blame."""
    shown = None if field is None or value is None else repr(value)[:_SHOWN_CHARACTERS]
    view = ProblemView(title=title, status=status, detail=detail, field=field, value=shown, accepted=accepted)
    return JSONResponse(view.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def _invalid(error: RequestValidationError) -> JSONResponse:
    """Name the first field that is wrong; the detail lists all."""
    items = [
        (dotted(e["loc"][1:]) or str(e["loc"][0]), e.get("input"), accepted_from(e["msg"]))
        for e in error.errors()
    ]
    detail = "; ".join(f"{name}: got {value!r:.200}, accepted: {accepted}" for name, value, accepted in items)
    field, value, accepted = items[0]
    return problem(422, "Invalid request", detail, field=field, value=value, accepted=accepted)


def _unknown(error: UnknownInstance) -> JSONResponse:
    accepted = ", ".join(error.known) or "no instance is configured"
    return problem(404, "Unknown instance", str(error), field="instance", value=error.name, accepted=accepted)


def _refused(error: Refused) -> JSONResponse:
    title = HTTPStatus(error.status).phrase
    return problem(error.status, title, error.detail, accepted=error.accepted, headers=error.headers)


def response_to(error: Exception) -> JSONResponse:
    """The one place where errors become HTTP."""
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, UnknownInstance):
        return _unknown(error)
    if isinstance(error, Rejected):
        accepted = error.accepted
        return problem(409, "Rejected", error.reason, field=error.field, value=error.value, accepted=accepted)
    if isinstance(error, Refused):
        return _refused(error)
    if isinstance(error, HTTPException):
        detail = str(error.detail)
        return problem(error.status_code, detail, detail, headers=dict(error.headers or {}))
    return problem(500, "Internal error", "the daemon failed to answer; its log has the reason")


async def _handle(request: Request, error: Exception) -> JSONResponse:
    response = response_to(error)
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """All that the path knows; the router tells only those of the first route that fits."""
    paths = request.app.openapi()["paths"]
    fitting = [item for path, item in paths.items() if compile_path(path)[0].match(request.url.path)]
    return {method.upper() for item in fitting for method in item}


def install(app: FastAPI) -> None:
    """Answer every error of this API with problem details; unforeseen ones still reach the log."""
    for kind in (RequestValidationError, UnknownInstance, Rejected, Refused, HTTPException, Exception):
        app.add_exception_handler(kind, _handle)
