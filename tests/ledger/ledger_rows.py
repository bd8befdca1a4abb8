"""Rows of a ledger, made up."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from kvwatt.holdout import Arm
from kvwattd.ledger.entry import SUMS, Entry

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
START_MS = 20_000 * DAY_MS  # a midnight


def row(number: int = 0, **changes: Any) -> Entry:
    """The `number`th minute: a controlled one of 12 kJ that would have taken 18 at default."""
    start_ms = START_MS + number * MINUTE_MS
    usual: dict[str, Any] = {
        "instance": "a",
        "start_ms": start_ms,
        "end_ms": start_ms + MINUTE_MS,
        "mode": "active",
        "arm": Arm.CONTROLLED,
        "run": 1,
        "gpus": 1,
        "clock_min_mhz": 1000,
        "clock_max_mhz": 1400,
        "time_ms": MINUTE_MS,
        "energy_mj": 12_000_000,
        "prompt_tokens": 60_000,
        "generation_tokens": 12_000,
        "requests": 60,
        "ttft_met": 59_500,
        "ttft_seen": 60_000,
        "clock_mhz_ms": 1200 * MINUTE_MS,
        "default_mj": 18_000_000,
        "would_mj": 12_000_000,
        "work_mj": 17_000_000,
        "work_ms": MINUTE_MS,
        "regimes": {"active": MINUTE_MS},
        "bindings": {"tbt": 600},
        "fixed": {
            "1005": [10_000_000, 0, MINUTE_MS],
            "1500": [14_000_000, MINUTE_MS, MINUTE_MS],
            "2520": [17_000_000, MINUTE_MS, MINUTE_MS],
        },
    }
    return Entry(**(usual | changes))


def held(number: int, slot: int, energy_mj: int = 18_000_000, **changes: Any) -> Entry:
    """A window at driver default."""
    return row(
        number, arm=Arm.DEFAULT, slot=slot, stratum=0, energy_mj=energy_mj, default_mj=energy_mj, **changes
    )


def sums(rows: list[Entry]) -> dict[str, int]:
    return {name: sum(getattr(one, name) for one in rows) for name in SUMS}


def maps(rows: list[Entry]) -> dict[str, Any]:
    """Everything counted by name, over all rows."""
    total: dict[str, Any] = {}
    for one in rows:
        for name, value in {**one.regimes, **one.bindings}.items():
            total[name] = total.get(name, 0) + value
        for clock, told in one.fixed.items():
            total[clock] = [a + b for a, b in zip(total.get(clock, [0] * 3), told, strict=True)]
    return total


whole = st.integers(0, 10**13)
names = st.sampled_from(["tbt", "ttft", "energy", "kv"])
clocks = st.sampled_from(["900", "1500", "2520"])
entries = st.builds(
    row,
    number=st.integers(0, 40 * 24 * 60),
    instance=st.sampled_from(["a", "b"]),
    mode=st.sampled_from(["active", "shadow"]),
    arm=st.sampled_from(list(Arm)),
    slot=st.integers(0, 5),
    **dict.fromkeys(SUMS, whole),
    regimes=st.dictionaries(st.sampled_from(["active", "failsafe"]), whole),
    bindings=st.dictionaries(names, whole),
    fixed=st.dictionaries(clocks, st.lists(whole, min_size=3, max_size=3)),
)
