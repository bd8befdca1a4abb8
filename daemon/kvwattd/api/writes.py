"""Calls that change something. Each needs a token of scope control and is recorded."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from kvwattd.api.auth import who_of
from kvwattd.api.ports import ControlPlane
from kvwattd.api.recorded import RecordedRoute, changed
from kvwattd.api.schemas import (
    ManualScaleRequest,
    ManualScaleView,
    ModelVersionsView,
    ModeView,
    OverrideRequest,
    OverrideView,
    ReloadView,
    RollbackRequest,
    SloView,
)


def writes(plane: ControlPlane) -> APIRouter:
    """Every call that changes something."""
    router = APIRouter(tags=["write"], route_class=RecordedRoute)
    _settings(router, plane)
    _overrides(router, plane)
    _pool(router, plane)

    @router.put("/instances/{instance}/model/rollback")
    async def rollback(instance: str, rollback: RollbackRequest, request: Request) -> ModelVersionsView:
        """Let an earlier version of the model serve at once; by default refits are held until told."""
        before = await plane.model_versions(instance)
        view = await plane.rollback(instance, rollback)
        changed(request, _served(before), _served(view))
        return view

    @router.post("/config/reload")
    async def reload(request: Request) -> ReloadView:
        """Read the configuration file again; one that is refused (409) leaves the old one in force."""
        view = await plane.reload()
        changed(request, None, view)
        return view

    return router


def _settings(router: APIRouter, plane: ControlPlane) -> None:
    @router.put("/mode")
    async def set_mode(mode: ModeView, request: Request) -> ModeView:
        """Switch between off, shadow and active. Stands over the configuration, also after a restart."""
        before = plane.mode()
        view = await plane.set_mode(mode, who_of(request))
        changed(request, before, view)
        return view

    @router.delete("/mode")
    async def clear_mode(request: Request) -> ModeView:
        """Back to the configuration's mode."""
        before = plane.mode()
        view = await plane.clear_mode()
        changed(request, before, view)
        return view

    @router.put("/slos/{instance}")
    async def set_slo(instance: str, slo: SloView, request: Request) -> SloView:
        """Replace all promises of one instance. Stands over the configuration, also after a restart."""
        before = plane.slos().get(instance)
        view = await plane.set_slo(instance, slo, who_of(request))
        changed(request, before, view)
        return view

    @router.delete("/slos/{instance}")
    async def clear_slo(instance: str, request: Request) -> SloView:
        """Back to the configuration's promises."""
        before = plane.slos().get(instance)
        view = await plane.clear_slo(instance)
        changed(request, before, view)
        return view


def _overrides(router: APIRouter, plane: ControlPlane) -> None:
    @router.put("/instances/{instance}/override")
    async def set_override(instance: str, override: OverrideRequest, request: Request) -> OverrideView:
        """Hold a clock by hand for a limited time; a restart ends it."""
        before = plane.override(instance)
        view = plane.set_override(instance, override)
        changed(request, before, view)
        return view

    @router.delete("/instances/{instance}/override", status_code=204)
    async def clear_override(instance: str, request: Request) -> Response:
        """Back to automatic at once."""
        before = plane.override(instance)
        plane.clear_override(instance)
        changed(request, before, None)
        return Response(status_code=204)


def _pool(router: APIRouter, plane: ControlPlane) -> None:
    @router.put("/pool/scale")
    async def set_scale(scale: ManualScaleRequest, request: Request) -> ManualScaleView:
        """Set the number of instances by hand for a limited time; a restart ends it."""
        before = plane.pool().manual
        view = plane.set_scale(scale, who_of(request))
        changed(request, before, view)
        return view

    @router.delete("/pool/scale", status_code=204)
    async def clear_scale(request: Request) -> Response:
        """Back to automatic at once."""
        before = plane.pool().manual
        plane.clear_scale()
        changed(request, before, None)
        return Response(status_code=204)


def _served(view: ModelVersionsView) -> dict[str, object]:
    return {"serving": view.serving, "held": view.held}
