"""Every series of /metrics."""

from __future__ import annotations

from typing import Any

from kvwattd.api.prometheus import DURATION, START
from kvwattd.api.series import GPU_SERIES, INSTANCE_SERIES, LEDGER_SERIES, POOL_SERIES, STATUS_SERIES, Series
from kvwattd.docs.text import NOTE, table


def page() -> str:
    rows = [_series(one, "") for one in STATUS_SERIES]
    rows.append([f"`{DURATION[0]}`", "histogram", "–", DURATION[1]])
    rows += [_series(one, "") for one in POOL_SERIES]
    rows += [_series(one, "") for one in LEDGER_SERIES]
    rows.append([f"`{START[0]}`", "histogram", "kind, action", START[1]])
    rows += [_series(one, "instance") for one in INSTANCE_SERIES]
    rows += [_series(one, "instance, gpu") for one in GPU_SERIES]
    text = table(["series", "type", "labels", "meaning"], rows)
    return f"# Metrics\n\n{NOTE}\nServed at `/metrics`. What is unknown has no sample.\n\n{text}\n"


def _series(series: Series[Any], labels: str) -> list[str]:
    name = f"`{series.name}{'_total' if series.counter else ''}`"
    kind = "counter" if series.counter else "gauge"
    return [name, kind, ", ".join(filter(None, (labels, *series.labels))) or "–", series.help]
