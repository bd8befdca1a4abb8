"""Showing the run: a live panel on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kvwatt.state import Slo

LINE_PERIOD_S = 5.0
BAR_CELLS = 12


@dataclass(frozen=True, slots=True)
class PlantView:
    """One plant now. `tbt_s`: mean over the requests in flight, `tbt_worst_s` the worst of them."""

    name: str
    clock_mhz: int
    lock: str
    power_w: float
    energy_j: float
    running: int | None
    waiting: int | None
    kv_usage: float | None
    tbt_s: float | None
    tbt_worst_s: float | None
    finished: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything shown at one moment."""

    elapsed_s: float
    warmup_s: float
    total_s: float
    sent: int
    requests: int
    plants: tuple[PlantView, ...]
    regime: str
    reason: str


class View(Protocol):
    """Where frames go."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, frame: Frame) -> None: ...


class LiveView:
    """Both plants side by side, redrawn in place."""

    def __init__(self, console: Console, slo: Slo) -> None:
        self._slo = slo
        # Drawn only when a frame comes: a refresh thread would take time from the load generators.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, frame: Frame) -> None:
        """Draw a frame."""
        self._live.update(render(frame, self._slo), refresh=True)


class LineView:
    """Plain lines for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to restore."""

    def show(self, frame: Frame) -> None:
        """Print the frame when the last one is a while ago."""
        if frame.elapsed_s < self._next_s:
            return
        self._next_s = frame.elapsed_s + LINE_PERIOD_S
        plants = " | ".join(
            f"{p.name} {p.clock_mhz} MHz {p.power_w:.0f} W batch {_count(p.running)} TBT {_ms(p.tbt_s)}"
            for p in frame.plants
        )
        progress = f"[{frame.elapsed_s:3.0f} s] {frame.sent}/{frame.requests} sent"
        if frame.elapsed_s < frame.warmup_s:
            progress += " (warm-up)"
        self._console.print(f"{progress} | {plants}", highlight=False, markup=False, soft_wrap=True)


def render(frame: Frame, slo: Slo) -> Group:
    """The live panel."""
    table = Table(box=None, expand=True, pad_edge=False)
    table.add_column("")
    for plant in frame.plants:
        table.add_column(plant.name, style="bold")
    limit_s = slo.tbt.limit_s if slo.tbt else None
    rows = {
        "clock": [f"{p.clock_mhz} MHz  {p.lock}" for p in frame.plants],
        "power": [f"{p.power_w:.0f} W" for p in frame.plants],
        "energy": [f"{p.energy_j:,.0f} J" for p in frame.plants],
        "batch": [f"{_count(p.running)} running, {_count(p.waiting)} waiting" for p in frame.plants],
        "KV cache": [_share(p.kv_usage) for p in frame.plants],
        "TBT / SLO": [_against(p.tbt_s, limit_s) for p in frame.plants],
        "worst TBT": [_ms(p.tbt_worst_s) for p in frame.plants],
        "served": [f"{p.finished} requests, {p.tokens:,} tokens" for p in frame.plants],
    }
    for label, cells in rows.items():
        table.add_row(label, *cells)
    phase = "warm-up: " if frame.elapsed_s < frame.warmup_s else ""
    sent = f"{frame.sent} of {frame.requests} requests sent"
    title = f"{phase}{frame.elapsed_s:.0f} of at most {frame.total_s:.0f} s, {sent}"
    bar = ProgressBar(total=frame.total_s, completed=min(frame.elapsed_s, frame.total_s))
    reason = Text(f"kvwatt ({frame.regime}): {frame.reason}", overflow="fold")
    return Group(Panel(table, title=title), bar, reason)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{_bar(value)} {100 * value:.0f} %"


def _against(value_s: float | None, limit_s: float | None) -> str:
    if value_s is None or limit_s is None:
        return _ms(value_s)
    return f"{_bar(value_s / limit_s)} {_ms(value_s)} of {_ms(limit_s)}"


def _bar(share: float) -> str:
    filled = round(BAR_CELLS * min(max(share, 0.0), 1.0))
    return "█" * filled + "░" * (BAR_CELLS - filled)


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{1000 * value_s:.0f} ms"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)
