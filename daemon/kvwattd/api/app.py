"""REST under /api/v1, Prometheus at /metrics, /healthz and /readyz.

Handlers are async so that they run on the daemon's event loop, where the control plane lives.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from prometheus_client.exposition import choose_encoder

from kvwattd.api.auth import TokenFile, require_token
from kvwattd.api.limits import BodyLimit
from kvwattd.api.ports import ControlPlane, UnknownInstance
from kvwattd.api.problems import install
from kvwattd.api.prometheus import registry_of
from kvwattd.api.schemas import (
    DecisionView,
    HealthView,
    InstanceView,
    ModelVersionsView,
    ModelView,
    ModeView,
    OverrideRequest,
    OverrideView,
    ProblemView,
    ReadyView,
    RollbackRequest,
    SloView,
    StatusView,
)
from kvwattd.version import kvwatt_version

log = logging.getLogger(__name__)

DECISIONS_LIMIT = 1000
_WRITE = [Depends(require_token)]
_Responses = dict[int | str, dict[str, Any]]
_PROBLEM: dict[str, Any] = {"model": ProblemView, "content": {"application/problem+json": {}}}
_ERRORS: _Responses = {404: _PROBLEM, 422: _PROBLEM}
_WRITE_ERRORS: _Responses = {**_ERRORS, 401: _PROBLEM, 403: _PROBLEM, 409: _PROBLEM}


def create_app(plane: ControlPlane, token: TokenFile) -> FastAPI:
    """The application over one control plane. Interactive docs are off: they load scripts from elsewhere."""
    app = FastAPI(
        title="kvwatt",
        version=kvwatt_version(),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.token = token
    install(app)
    app.add_middleware(BodyLimit)
    app.include_router(_reads(plane), prefix="/api/v1", responses=_ERRORS)
    app.include_router(_writes(plane), prefix="/api/v1", dependencies=_WRITE, responses=_WRITE_ERRORS)
    app.include_router(_probes(plane))
    return app


def _reads(plane: ControlPlane) -> APIRouter:
    router = APIRouter(tags=["read"])

    @router.get("/status")
    async def status() -> StatusView:
        return plane.status()

    @router.get("/instances")
    async def instances() -> list[InstanceView]:
        return plane.instances()

    @router.get("/instances/{instance}")
    async def instance(instance: str) -> InstanceView:
        views = {view.name: view for view in plane.instances()}
        if instance not in views:
            raise UnknownInstance(instance, views)
        return views[instance]

    @router.get("/instances/{instance}/model")
    async def model(instance: str) -> ModelView:
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
        return plane.slos()

    @router.get("/slos/{instance}")
    async def slo(instance: str) -> SloView:
        views = plane.slos()
        if instance not in views:
            raise UnknownInstance(instance, views)
        return views[instance]

    @router.get("/mode")
    async def mode() -> ModeView:
        return plane.mode()

    return router


def _writes(plane: ControlPlane) -> APIRouter:
    router = APIRouter(tags=["write"])

    @router.put("/slos/{instance}")
    async def set_slo(instance: str, slo: SloView, request: Request) -> SloView:
        """Replace all promises of one instance, until the daemon restarts."""
        view = plane.set_slo(instance, slo)
        _audit(request, f"SLO of {instance} set to {view!r}")
        return view

    @router.put("/mode")
    async def set_mode(mode: ModeView, request: Request) -> ModeView:
        """Switch between off, shadow and active, until the daemon restarts."""
        view = plane.set_mode(mode)
        _audit(request, f"mode set to {view.mode}")
        return view

    @router.put("/instances/{instance}/override")
    async def set_override(instance: str, override: OverrideRequest, request: Request) -> OverrideView:
        """Hold a clock by hand for a limited time."""
        view = plane.set_override(instance, override)
        _audit(request, f"override of {instance}: {view.clock_mhz or 'default'} MHz for {view.left_s:g} s")
        return view

    @router.delete("/instances/{instance}/override", status_code=204)
    async def clear_override(instance: str, request: Request) -> Response:
        """Back to automatic at once."""
        plane.clear_override(instance)
        _audit(request, f"override of {instance} ended")
        return Response(status_code=204)

    @router.put("/instances/{instance}/model/rollback")
    async def rollback(instance: str, rollback: RollbackRequest, request: Request) -> ModelVersionsView:
        """Let an earlier version of the model serve at once; by default refits are held until told."""
        view = await plane.rollback(instance, rollback)
        held = ", refits held" if view.held else ""
        _audit(request, f"model of {instance} rolled back to version {view.serving}{held}")
        return view

    return router


def _probes(plane: ControlPlane) -> APIRouter:
    router = APIRouter(tags=["probe"])
    registry = registry_of(plane.status)

    @router.get("/healthz")
    async def healthz(response: Response) -> HealthView:
        view = plane.healthy()
        response.status_code = 200 if view.ok else 503
        return view

    @router.get("/readyz")
    async def readyz(response: Response) -> ReadyView:
        view = plane.ready()
        response.status_code = 200 if view.ready else 503
        return view

    @router.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=content_type)

    return router


def _audit(request: Request, what: str) -> None:
    """Who changed what; the token is no part of it."""
    log.info("api: %s by %s", what, request.client.host if request.client else "unknown")
