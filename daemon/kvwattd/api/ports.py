"""What the API asks of the daemon. The loop implements it; tests use a fake that enforces its rules.

All methods are called on the daemon's event loop. They return at once and never wait for I/O, but for the
asynchronous ones, which leave the disk to a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from kvwattd.api.schemas import (
    ConfigStateView,
    DecisionView,
    HealthView,
    HistoryView,
    InstanceView,
    ManualScaleRequest,
    ManualScaleView,
    ModelVersionsView,
    ModelView,
    ModeView,
    OverrideRequest,
    OverrideView,
    PoolView,
    ReadyView,
    ReloadView,
    RollbackRequest,
    SettingsView,
    SloView,
    StatusView,
    TrajectoryView,
)
from kvwattd.instances.http_sd import Listed


class UnknownInstance(Exception):  # noqa: N818 (a fact about the request, not a fault of the program)
    """No instance has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(f"unknown instance {name!r}; known: {', '.join(self.known) or 'none'}")


class Rejected(Exception):  # noqa: N818 (see above)
    """A well-formed request that the daemon refuses."""

    def __init__(self, reason: str, accepted: str, field: str | None = None, value: object = None) -> None:
        self.reason = reason
        self.accepted = accepted
        self.field = field
        self.value = value
        super().__init__(f"{reason}; accepted: {accepted}")


class ControlPlane(Protocol):
    """The daemon as seen from outside. Methods that take an instance raise UnknownInstance."""

    def status(self) -> StatusView: ...

    def instances(self) -> list[InstanceView]: ...

    def trajectory(self, instance: str) -> TrajectoryView | None:
        """Where batch and KV cache go from here; None while there is nothing to project from."""

    def history(self, instance: str) -> HistoryView: ...

    def decisions(self, instance: str | None, limit: int) -> list[DecisionView]:
        """The newest `limit` decisions, newest first, of one instance or of all."""

    def slos(self) -> dict[str, SloView]: ...

    async def set_slo(self, instance: str, slo: SloView, who: str) -> SloView:
        """Replace the promises of one instance. Raises Rejected when nothing is promised."""

    async def clear_slo(self, instance: str) -> SloView:
        """Back to the configuration's promises; no effect when none were set."""

    def mode(self) -> ModeView: ...

    async def set_mode(self, mode: ModeView, who: str) -> ModeView:
        """Change the mode."""

    async def clear_mode(self) -> ModeView:
        """Back to the configuration's mode; no effect when none was set."""

    def settings(self) -> SettingsView:
        """What was set over REST."""

    def config_state(self) -> ConfigStateView: ...

    async def reload(self) -> ReloadView:
        """Read the configuration again. Raises Rejected when it is refused; then the old one stays."""

    def override(self, instance: str) -> OverrideView | None: ...

    def set_override(self, instance: str, request: OverrideRequest) -> OverrideView:
        """Hold a clock for a limited time. Raises Rejected for a clock the GPUs do not support."""

    def clear_override(self, instance: str) -> None:
        """Back to automatic; no effect when there is no override."""

    def pool(self) -> PoolView: ...

    def set_scale(self, request: ManualScaleRequest, who: str) -> ManualScaleView:
        """So many instances for a limited time. Raises Rejected without a pool, or out of bounds."""

    def clear_scale(self) -> None:
        """Back to automatic; no effect when nothing was set by hand."""

    def targets(self) -> Sequence[Listed] | None:
        """Where requests may be sent now; None while that is not known. Raises Rejected without a pool."""

    def model(self, instance: str) -> ModelView: ...

    async def model_versions(self, instance: str) -> ModelVersionsView:
        """Every version on disk, which a thread reads."""

    async def rollback(self, instance: str, request: RollbackRequest) -> ModelVersionsView:
        """Let a version serve, which a thread writes down. Raises Rejected when it is not a sound one."""

    def healthy(self) -> HealthView: ...

    def ready(self) -> ReadyView: ...
