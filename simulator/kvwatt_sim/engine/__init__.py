"""Continuous batching as vLLM V1 does it, in virtual time: no I/O, no clock reads, no randomness."""

from kvwatt_sim.engine.core import Engine
from kvwatt_sim.engine.types import (
    Counters,
    EventKind,
    FinishReason,
    Request,
    RequestRecord,
    StepPlan,
    TokenEvent,
)

__all__ = [
    "Counters",
    "Engine",
    "EventKind",
    "FinishReason",
    "Request",
    "RequestRecord",
    "StepPlan",
    "TokenEvent",
]
