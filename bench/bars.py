"""Bars of a benchmark: what was measured against what was wanted, met or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Bar:
    """One measured value and its limit; `better` says on which side of the limit it should lie."""

    name: str
    value: float
    limit: float
    better: Literal["higher", "lower"]

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.better == "higher" else self.value <= self.limit


def show(bars: Sequence[Bar], title: str) -> None:
    """Print the bars as a table."""
    table = Table(title=title)
    for column in ("bar", "value", "limit", ""):
        table.add_column(column, justify="left" if column in ("bar", "") else "right")
    for bar in bars:
        sign = ">=" if bar.better == "higher" else "<="
        table.add_row(bar.name, f"{bar.value:.4g}", f"{sign} {bar.limit:g}", "met" if bar.met else "MISSED")
    Console().print(table)


def write(path: Path | None, bars: Sequence[Bar], **more: object) -> None:
    """Write `{"bars": [...], ...}`; nothing without a path."""
    if path is not None:
        document = {"bars": [asdict(bar) for bar in bars], **more}
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
