"""Series of kvwatt's scheduler inside vLLM, as told over the tap; no samples where vLLM runs its own."""

from __future__ import annotations

from collections.abc import Callable

from kvwattd.api.schemas import InstanceView
from kvwattd.api.schemas.scheduler import SchedulerView
from kvwattd.api.series.base import Samples, Series, one


def _of(view: InstanceView) -> SchedulerView | None:
    return view.telemetry.tap.scheduler if view.telemetry.tap is not None else None


def _told(
    name: str, help_: str, value: Callable[[SchedulerView], float], *, counter: bool = False
) -> Series[InstanceView]:
    def read(view: InstanceView) -> float | None:
        found = _of(view)
        return None if found is None else float(value(found))

    return one(name, help_, read, counter=counter)


def _held(view: InstanceView) -> Samples:
    found = _of(view)
    return [] if found is None else [((why,), float(n)) for why, n in found.held_steps_total.items()]


SCHEDULER_SERIES: tuple[Series[InstanceView], ...] = (
    _told(
        "kvwatt_scheduler_cap_tokens",
        "Output tokens that a new request is expected to make.",
        lambda v: v.cap_tokens,
    ),
    _told(
        "kvwatt_scheduler_horizon_tokens",
        "Tokens that a request should make before the KV cache overflows, or it is held back.",
        lambda v: v.horizon_steps,
    ),
    _told(
        "kvwatt_scheduler_held_requests",
        "Requests that wait while the first of them is held back.",
        lambda v: v.held,
    ),
    _told(
        "kvwatt_scheduler_requests_held",
        "Requests held back at least once.",
        lambda v: v.held_total,
        counter=True,
    ),
    Series(
        "kvwatt_scheduler_held_steps",
        "Engine steps in which a request was held back, by reason.",
        _held,
        ("reason",),
        counter=True,
    ),
    _told(
        "kvwatt_scheduler_preemptions_avoided_estimate",
        "Preemptions avoided: an estimate, on the low side.",
        lambda v: v.preemptions_avoided_total,
        counter=True,
    ),
    _told(
        "kvwatt_scheduler_fallbacks",
        "Steps left to vLLM's own scheduling by an exception.",
        lambda v: v.faults_total,
        counter=True,
    ),
    _told(
        "kvwatt_scheduler_told",
        "1 while the scheduler has a fresh message of the daemon, else 0.",
        lambda v: v.told,
    ),
    _told(
        "kvwatt_scheduler_message_errors",
        "Messages of the daemon that the scheduler could not read.",
        lambda v: v.message_errors_total,
        counter=True,
    ),
    _told(
        "kvwatt_scheduler_aside",
        "1 when the scheduler leaves everything to vLLM (why: telemetry.tap.scheduler.aside), else 0.",
        lambda v: v.aside is not None,
    ),
)
