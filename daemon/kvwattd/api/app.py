"""REST under /api/v1, Prometheus at /metrics, /healthz and /readyz.

Handlers are async so that they run on the daemon's event loop, where the control plane lives.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from kvwattd.api.auth import SCHEME, Access, known_query, may_control, may_read
from kvwattd.api.limits import BodyLimit
from kvwattd.api.ports import ControlPlane
from kvwattd.api.problems import install
from kvwattd.api.prometheus import registry_of
from kvwattd.api.reads import audit_log, reads
from kvwattd.api.schemas import (
    HealthView,
    ProblemView,
    ReadyView,
)
from kvwattd.api.writes import writes
from kvwattd.dashboard import events, page
from kvwattd.version import kvwatt_version

_Responses = dict[int | str, dict[str, Any]]
_PROBLEM: dict[str, Any] = {"model": ProblemView, "content": {"application/problem+json": {}}}


def _problems(*statuses: int) -> _Responses:
    return dict.fromkeys(statuses, _PROBLEM)


_READ_ERRORS = _problems(400, 401, 403, 404, 405, 422)
_WRITE_ERRORS = _problems(400, 401, 403, 404, 405, 409, 413, 422, 429)


def create_app(plane: ControlPlane, access: Access) -> FastAPI:
    """The application over one control plane. Interactive docs are off: they load scripts from elsewhere."""
    app = FastAPI(
        title="kvwatt",
        version=kvwatt_version(),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.access = access
    install(app)
    app.add_middleware(BodyLimit)
    # Writes ask for the token themselves, before the body is read; here the scheme is only described.
    read, control, write = ([Depends(may), Depends(known_query)] for may in (may_read, may_control, SCHEME))
    app.include_router(reads(plane), prefix="/api/v1", dependencies=read, responses=_READ_ERRORS)
    app.include_router(events(plane), prefix="/api/v1", dependencies=read, responses=_READ_ERRORS)
    app.include_router(audit_log(access), prefix="/api/v1", dependencies=control, responses=_READ_ERRORS)
    app.include_router(writes(plane), prefix="/api/v1", dependencies=write, responses=_WRITE_ERRORS)
    app.include_router(_probes(plane))
    app.include_router(page())
    app.include_router(_metrics(plane), dependencies=[Depends(may_read)], responses=_READ_ERRORS)
    return app


def _probes(plane: ControlPlane) -> APIRouter:
    router = APIRouter(tags=["probe"])

    @router.get("/healthz", responses={503: {"model": HealthView}})
    async def healthz(response: Response) -> HealthView:
        """200 while the loop ticks, else 503."""
        view = plane.healthy()
        response.status_code = 200 if view.ok else 503
        return view

    @router.get("/readyz", responses={503: {"model": ReadyView}})
    async def readyz(response: Response) -> ReadyView:
        """200 when every instance is observed and decided for, else 503 with the reasons."""
        view = plane.ready()
        response.status_code = 200 if view.ready else 503
        return view

    return router


def _metrics(plane: ControlPlane) -> APIRouter:
    router = APIRouter(tags=["read"])
    registry = registry_of(plane.status)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Prometheus exposition, OpenMetrics on request."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=content_type)

    return router
