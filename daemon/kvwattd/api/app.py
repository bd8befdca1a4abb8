"""REST under /api/v1, Prometheus at /metrics, /healthz and /readyz.

Handlers are async so that they run on the daemon's event loop, where the control plane lives.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from kvwattd.api.auth import Access, known_query, may_control, may_read, may_write
from kvwattd.api.limits import BodyLimit
from kvwattd.api.ports import ControlPlane, UnknownInstance
from kvwattd.api.problems import install
from kvwattd.api.prometheus import registry_of
from kvwattd.api.schemas import (
    AuditView,
    ConfigStateView,
    DecisionView,
    HealthView,
    InstanceView,
    ModelVersionsView,
    ModelView,
    ModeView,
    ProblemView,
    ReadyView,
    SettingsView,
    SloView,
    StatusView,
)
from kvwattd.api.writes import writes
from kvwattd.version import kvwatt_version

DECISIONS_LIMIT = 1000
AUDIT_LIMIT = 1000
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
    read, control, write = (
        [Depends(may), Depends(known_query)] for may in (may_read, may_control, may_write)
    )
    app.include_router(_reads(plane), prefix="/api/v1", dependencies=read, responses=_READ_ERRORS)
    app.include_router(_audited(access), prefix="/api/v1", dependencies=control, responses=_READ_ERRORS)
    app.include_router(writes(plane), prefix="/api/v1", dependencies=write, responses=_WRITE_ERRORS)
    app.include_router(_probes(plane))
    app.include_router(_metrics(plane), dependencies=[Depends(may_read)], responses=_READ_ERRORS)
    return app


def _reads(plane: ControlPlane) -> APIRouter:
    router = APIRouter(tags=["read"])

    @router.get("/status")
    async def status() -> StatusView:
        """Everything at once: the daemon, its settings and alarms, and every instance."""
        return plane.status()

    @router.get("/instances")
    async def instances() -> list[InstanceView]:
        """What each engine does, what is asked of its GPUs, and how well its promises are kept."""
        return plane.instances()

    @router.get("/instances/{instance}")
    async def instance(instance: str) -> InstanceView:
        """One engine."""
        views = {view.name: view for view in plane.instances()}
        if instance not in views:
            raise UnknownInstance(instance, views)
        return views[instance]

    @router.get("/instances/{instance}/model")
    async def model(instance: str) -> ModelView:
        """The step-time and power model in use, or why there is none."""
        return plane.model(instance)

    @router.get("/instances/{instance}/model/versions")
    async def model_versions(instance: str) -> ModelVersionsView:
        """The shipped model and those refitted online, with what they were judged on."""
        return await plane.model_versions(instance)

    @router.get("/decisions")
    async def decisions(
        instance: str | None = None,
        limit: Annotated[int, Query(ge=1, le=DECISIONS_LIMIT)] = 20,
    ) -> list[DecisionView]:
        """The newest decisions with their reasons, newest first."""
        return plane.decisions(instance, limit)

    @router.get("/slos")
    async def slos() -> dict[str, SloView]:
        """The promises in force, by instance."""
        return plane.slos()

    @router.get("/slos/{instance}")
    async def slo(instance: str) -> SloView:
        """The promises in force of one instance."""
        views = plane.slos()
        if instance not in views:
            raise UnknownInstance(instance, views)
        return views[instance]

    @router.get("/mode")
    async def mode() -> ModeView:
        """Off, shadow or active."""
        return plane.mode()

    @router.get("/settings")
    async def settings() -> SettingsView:
        """What was set over REST, by whom and when."""
        return plane.settings()

    @router.get("/config")
    async def config() -> ConfigStateView:
        """When the configuration was read, and what the latest reload came to."""
        return plane.config_state()

    return router


def _audited(access: Access) -> APIRouter:
    router = APIRouter(tags=["audit"])

    @router.get("/audit")
    async def audit(limit: Annotated[int, Query(ge=1, le=AUDIT_LIMIT)] = 100) -> list[AuditView]:
        """The newest changes and refused attempts, newest first. Needs a token of scope control."""
        return await access.audit.newest(limit)

    return router


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
