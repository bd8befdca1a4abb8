"""Which versions of vLLM the scheduler was tried on, and the names that moved between them."""

from __future__ import annotations

import os
from collections.abc import Mapping

TESTED = ("0.27", "0.31", "0.32")
FORCE_ENV = "KVWATT_SCHEDULER_FORCE"
HORIZON_ENV = "KVWATT_SCHEDULER_HORIZON"  # steps; without it, it is learned
# The bound on admission into the batch. From 0.31 it is apart from the model runner's slots.
SEAT_NAMES = ("max_num_active_reqs", "max_num_running_reqs")
# Waiting requests that vLLM takes before `waiting`: with KV of their own (0.31), or skipped before (0.27).
ASIDE_NAMES = ("kv_holding_waiting", "skipped_waiting")


def check(version: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises RuntimeError for a version that was not tried, unless forced."""
    if ".".join(version.split(".")[:2]) in TESTED or environment.get(FORCE_ENV) == "1":
        return
    raise RuntimeError(
        f"kvwatt's scheduler was tried on vLLM {', '.join(TESTED)}; this is {version}: start without "
        f"--scheduler-cls, or set {FORCE_ENV}=1 to try it"
    )


def fixed_horizon(environment: Mapping[str, str] = os.environ) -> int | None:
    """Steps, None where it is to be learned. Raises RuntimeError for what is no number of steps."""
    text = environment.get(HORIZON_ENV, "")
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise RuntimeError(f"{HORIZON_ENV} = {text!r}: a number of steps, 1 or more, is accepted")
    return int(text)


def seat_name(scheduler: object) -> str:
    """Raises RuntimeError where vLLM has no such bound."""
    for name in SEAT_NAMES:
        if hasattr(scheduler, name):
            return name
    raise RuntimeError(f"vLLM's scheduler has none of {', '.join(SEAT_NAMES)}: start without --scheduler-cls")
