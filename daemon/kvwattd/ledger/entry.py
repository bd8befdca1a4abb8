"""One row of the ledger: an interval of one instance and its GPU group.

What adds up is whole numbers, so that sums stay exact however rows are merged: millijoules, milliseconds,
tokens, and thousandths of requests where histograms are interpolated. Times are milliseconds since 1970,
UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cache
from typing import Any

from kvwatt.holdout import Arm

NO_STRATUM = -1


class Level(IntEnum):
    """How coarse a row is; the value is kept in the file."""

    INTERVAL = 0
    HOUR = 1
    DAY = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """`fixed`: clock in MHz -> millijoules that the model expects of this work at that clock throughout,
    milliseconds in which it would have kept the promises, and milliseconds judged. `regimes`: milliseconds
    in each; `bindings`: decisions by what kept the clock from being lower.
    """

    # what it is of
    instance: str
    start_ms: int
    end_ms: int
    level: Level = Level.INTERVAL
    mode: str = "shadow"
    arm: Arm = Arm.NONE
    stratum: int = NO_STRATUM
    run: int = 0  # the daemon's start in which it was drawn; 0: of several
    slot: int = 0
    place: int = 0  # of the slot within its stratum
    gpus: int = 0
    clock_min_mhz: int = 0
    clock_max_mhz: int = 0
    # what adds up
    time_ms: int = 0
    energy_mj: int = 0  # from the counter, but for
    estimated_mj: int = 0  # the part that no counter vouches for
    prompt_tokens: int = 0  # computed: without those from the prefix cache
    generation_tokens: int = 0
    requests: int = 0  # finished
    ttft_met: int = 0  # thousandths of requests that kept the promise then in force, and of all judged
    ttft_seen: int = 0
    tbt_met: int = 0
    tbt_seen: int = 0
    e2e_met: int = 0
    e2e_seen: int = 0
    clock_mhz_ms: int = 0  # integral of the clock read back, mean over the group
    default_mj: int = 0  # energy used, scaled by the model to driver default
    would_mj: int = 0  # in shadow mode: scaled to the clock decided; else as used
    work_mj: int = 0  # what the model expects of this work at driver default
    work_ms: int = 0  # time for which it could be asked
    would_error_mj: int = 0  # in shadow mode: half-width of the 95 % interval of would_mj
    would_ttft_met: int = 0  # in shadow mode, by the model: as above, had the decided clocks been set
    would_ttft_seen: int = 0
    would_tbt_met: int = 0
    would_tbt_seen: int = 0
    would_e2e_met: int = 0
    would_e2e_seen: int = 0
    # what is counted by name
    regimes: Mapping[str, int] = field(default_factory=dict)
    bindings: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, Sequence[int]] = field(default_factory=dict)


NAMES = tuple(item.name for item in fields(Entry))
SUMS = NAMES[NAMES.index("time_ms") : NAMES.index("regimes")]
MAPS = NAMES[NAMES.index("regimes") :]


def values(entry: Entry) -> tuple[Any, ...]:
    """In the order of NAMES, as SQLite takes them."""
    plain = [getattr(entry, name) for name in NAMES[: -len(MAPS)]]
    maps = [json.dumps(getattr(entry, name), separators=(",", ":"), sort_keys=True) for name in MAPS]
    return (*(str(v) if isinstance(v, Arm) else v for v in plain), *maps)


def entry_from(row: Sequence[Any]) -> Entry:
    """The reverse of `values`. Raises ValueError on what was never written."""
    found = dict(zip(NAMES, row, strict=True))
    for name in _numbers():
        if type(found[name]) is not int:
            raise ValueError(f"{name} = {found[name]!r}: a whole number is needed")
    found |= {"level": Level(found["level"]), "arm": Arm(found["arm"])}
    for name in MAPS:
        found[name] = json.loads(found[name])
        if not isinstance(found[name], dict):
            raise ValueError(f"{name}: a table is needed")
    return Entry(**found)


@cache
def _numbers() -> tuple[str, ...]:
    return tuple(name for name in NAMES if name not in (*MAPS, "instance", "mode", "arm"))


def merged(rows: Iterable[Entry], level: Level) -> list[Entry]:
    """One row for each instance, mode and arm; every sum is conserved exactly."""
    groups: dict[tuple[str, str, Arm], list[Entry]] = {}
    for row in rows:
        groups.setdefault((row.instance, row.mode, row.arm), []).append(row)
    return [_one(group, level) for group in groups.values()]


def _one(rows: list[Entry], level: Level) -> Entry:
    lows = [row.clock_min_mhz for row in rows if row.clock_min_mhz]
    return Entry(
        instance=rows[0].instance,
        mode=rows[0].mode,
        arm=rows[0].arm,
        level=level,
        start_ms=min(row.start_ms for row in rows),
        end_ms=max(row.end_ms for row in rows),
        gpus=max(row.gpus for row in rows),
        clock_min_mhz=min(lows, default=0),
        clock_max_mhz=max(row.clock_max_mhz for row in rows),
        **{name: sum(getattr(row, name) for row in rows) for name in SUMS},
        regimes=_added([row.regimes for row in rows]),
        bindings=_added([row.bindings for row in rows]),
        fixed=_added_pairs([row.fixed for row in rows]),
    )


def _added(maps: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for item in maps:
        for name, value in item.items():
            total[name] = total.get(name, 0) + value
    return total


def _added_pairs(maps: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for item in maps:
        for name, pair in item.items():
            before = total.get(name, [0] * len(pair))
            total[name] = [a + b for a, b in zip(before, pair, strict=True)]
    return total
