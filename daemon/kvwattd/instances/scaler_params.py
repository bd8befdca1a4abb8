"""Limits and deadlines of the scaler."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class OnDeadline(StrEnum):
    """What becomes of a drain that takes longer than `drain_timeout_s`: the operator's choice."""

    KEEP_WAITING = "keep-waiting"
    UNDRAIN = "undrain"  # back into service
    STOP_ANYWAY = "stop-anyway"  # requests that still run are cut off


@dataclass(frozen=True, slots=True)
class ScalerParams:
    """How the scaler behaves; durations in seconds.

    Args:
        minimum: members that keep serving: no drain begins that would leave fewer.
        start_timeout_s: from the order to start or wake until it serves; then FAILED and cleaned up.
        drain_timeout_s: from the withdrawal until it is empty; then `on_deadline`.
        on_deadline: what then.
        quiet_looks: looks in a row that must find the engine and the router empty.
        end_timeout_s: from the order to stop or sleep until it is so; then FAILED.
        retry_s: how long a FAILED member is left alone.
        dead_looks: looks in a row without health until a serving member counts as dead (1 where its port
            refuses connections or its backend says that it ended).
        look_timeout_s: of each look: health and load, the backend's states, the router's list.
        call_timeout_s: of each order to backend, router and probe, on top of their own deadlines.
        step_s: how long one `step` waits for calls; what takes longer goes on beside the next steps.
        warm_up: whether a new member must answer one request before it is admitted.
    """

    minimum: int = 1
    start_timeout_s: float = 600.0
    drain_timeout_s: float = 600.0
    on_deadline: OnDeadline = OnDeadline.KEEP_WAITING
    quiet_looks: int = 3
    end_timeout_s: float = 120.0
    retry_s: float = 120.0
    dead_looks: int = 3
    look_timeout_s: float = 3.0
    call_timeout_s: float = 90.0
    step_s: float = 1.0
    warm_up: bool = True
