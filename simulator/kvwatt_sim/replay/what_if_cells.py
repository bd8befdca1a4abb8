"""A row of the what-if answer as texts, for terminal and report alike."""

from __future__ import annotations

from typing import Any

JOULES_PER_KWH = 3.6e6
METRICS = ("ttft", "tbt", "e2e", "itl")
HEADINGS = ("what", "kWh", "saved %", *(name.upper() for name in METRICS), "changes")

Row = dict[str, Any]


def cells(row: Row) -> list[str]:
    """One text per heading; empty where there is nothing to tell."""
    energy_j, saved, changes = row["energy_j"], row["saved"], row["clock_changes"]
    return [
        row["what"],
        "not measured" if energy_j is None else f"{energy_j / JOULES_PER_KWH:.3f}",
        "" if saved is None else f"{100 * saved:.1f}",
        *(_latency(row, name) for name in METRICS),
        "" if changes is None else str(changes),
    ]


def _latency(row: Row, name: str) -> str:
    """`2.91/3` and `99.3 %`: the 99th percentile and the promise in seconds, the share within it."""
    p99_s, limit_s = row["p99_s"].get(name), row["limits_s"].get(name)
    if p99_s is None:
        return ""
    if limit_s is None or name not in row["attainment"]:
        return f"{p99_s:.3g}"
    return f"{p99_s:.2g}/{limit_s:.2g}\n{100 * row['attainment'][name]:.1f} %"
