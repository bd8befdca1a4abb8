"""What kvwatt's scheduler inside an engine tells, as the API shows it."""

from __future__ import annotations

from kvwattd.api.schemas.scheduler import SchedulerView
from kvwattd.tap_stream import TapStream


def scheduler_view(tap: TapStream, now_s: float) -> SchedulerView | None:
    """None where the engine runs vLLM's own."""
    record = tap.scheduler
    if record is None:
        return None
    return SchedulerView(
        age_s=max(now_s - tap.scheduler_s, 0.0),
        steps_total=record.steps,
        cap_tokens=record.cap_tokens,
        horizon_steps=record.horizon_steps,
        held=record.held,
        held_total=record.held_total,
        held_steps_total=dict(record.held_steps),
        preemptions_avoided_total=record.avoided_total,
        faults_total=record.faults_total,
        told=record.told,
        message_errors_total=record.message_errors,
        aside=record.aside[:200] or None,
    )
