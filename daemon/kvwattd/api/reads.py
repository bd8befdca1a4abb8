"""Calls that only read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from kvwattd.api.auth import Access
from kvwattd.api.ports import ControlPlane, UnknownInstance
from kvwattd.api.problems import Refused
from kvwattd.api.schemas import (
    AuditView,
    ConfigStateView,
    DecisionView,
    HistoryView,
    InstanceView,
    ModelVersionsView,
    ModelView,
    ModeView,
    PoolView,
    ProblemView,
    SettingsView,
    SloView,
    StatusView,
    TargetGroupView,
    TargetsView,
    TrajectoryView,
)
from kvwattd.instances.http_sd import plain, prometheus_sd

_PROBLEM: dict[str, Any] = {"model": ProblemView, "content": {"application/problem+json": {}}}
DECISIONS_LIMIT = 1000
AUDIT_LIMIT = 1000


def reads(plane: ControlPlane) -> APIRouter:
    """Every call that only reads, but for the audit log."""
    router = APIRouter(tags=["read"])

    @router.get("/status")
    async def status() -> StatusView:
        """Everything at once: the daemon, its settings and alarms, and every instance."""
        return plane.status()

    _instances(router, plane)
    _pool(router, plane)
    _settings(router, plane)
    return router


def _instances(router: APIRouter, plane: ControlPlane) -> None:
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

    @router.get("/instances/{instance}/trajectory")
    async def trajectory(instance: str) -> TrajectoryView | None:
        """Batch and KV cache over the coming seconds with their band; null while nothing can be projected."""
        return plane.trajectory(instance)

    @router.get("/instances/{instance}/history")
    async def history(instance: str) -> HistoryView:
        """The last quarter of an hour at most, a point a second: what the page draws when it is opened."""
        return plane.history(instance)

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


def _pool(router: APIRouter, plane: ControlPlane) -> None:
    @router.get("/pool")
    async def pool() -> PoolView:
        """How many instances run and should, the forecast, the newest plans with their reasons."""
        return plane.pool()

    @router.get("/pool/targets", responses={409: _PROBLEM, 503: _PROBLEM})
    async def targets(
        form: Annotated[Literal["prometheus", "plain"], Query(alias="format")] = "prometheus",
    ) -> list[TargetGroupView] | TargetsView:
        """Instances that requests may be sent to: Prometheus HTTP service discovery, or plain JSON."""
        listed = plane.targets()
        if listed is None:
            raise Refused(503, "who serves is not known yet", "a call a bit later", {"Retry-After": "2"})
        if form == "plain":
            return TargetsView.model_validate(plain(listed))
        return [TargetGroupView.model_validate(group) for group in prometheus_sd(listed)]


def _settings(router: APIRouter, plane: ControlPlane) -> None:
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


def audit_log(access: Access) -> APIRouter:
    """Who changed what."""
    router = APIRouter(tags=["audit"])

    @router.get("/audit")
    async def audit(limit: Annotated[int, Query(ge=1, le=AUDIT_LIMIT)] = 100) -> list[AuditView]:
        """The newest changes and refused attempts, newest first. Needs a token of scope control."""
        return await access.audit.newest(limit)

    return router
