"""The pool on the status screen: how many run and should, why, and each member in a line."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvwatt.pool import MemberStatus
from kvwattd.api.schemas import KindView, PoolView

_STYLES = {
    MemberStatus.READY: "green",
    MemberStatus.STARTING: "cyan",
    MemberStatus.DRAINING: "cyan",
    MemberStatus.FAILED: "bold red",
    MemberStatus.UNKNOWN: "bold red",
}
_SHOWN = ("ready", "starting", "draining", "asleep", "stopped", "failed", "unknown")


def pool_parts(pool: PoolView) -> Iterator[RenderableType]:
    """Nothing without a pool."""
    if not pool.enabled:
        return
    yield Text()
    yield _title(pool)
    if pool.fault is not None:
        yield Text(f"nothing is taken away: {pool.fault}", style="yellow")
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    table.add_column()
    for name, value in _rows(pool):
        table.add_row(name, value)
    yield table


def _title(pool: PoolView) -> Text:
    text = Text("pool", style="bold")
    text.append(f"  {pool.backend}, router {pool.router}", style="dim")
    if not pool.acting:
        text.append("  only told, nothing is started or stopped", style="cyan")
    return text


def _rows(pool: PoolView) -> Iterator[tuple[str, Text]]:
    for kind in pool.kinds:
        yield kind.kind, Text(_counted(kind))
    if pool.forecast is not None:
        f = pool.forecast
        told = f"{f.now_per_s:.2f}/s now; in {f.horizon_s:.0f} s {f.mean_per_s:.2f}/s, "
        yield "requests", Text(f"{told}{f.quantile:.0%} below {f.quantile_per_s:.2f}/s")
    if pool.manual is not None:
        m = pool.manual
        yield "by hand", Text(f"{m.instances} instances for {m.left_s:.0f} s more ({m.by})", style="yellow")
    if pool.plan is not None:
        yield "why", Text(pool.plan.reason)
    for member in pool.members:
        status = Text(f"{member.status} for {member.status_s:.0f} s", style=_STYLES.get(member.status, "dim"))
        if member.status in (MemberStatus.READY, MemberStatus.DRAINING):
            status.append(f"  {member.running} running, {member.waiting} waiting", style="default")
        elif member.reason:
            status.append(f"  {member.reason}", style="dim")
        yield f"  {member.name}", status


def _counted(kind: KindView) -> str:
    desired = "–" if kind.desired is None else str(kind.desired)
    counts = [f"{getattr(kind, name)} {name}" for name in _SHOWN if getattr(kind, name)]
    carries = "" if kind.capacity_per_s is None else f"; each carries {kind.capacity_per_s:.2f}/s"
    return f"{desired} wanted: {', '.join(counts)}{carries}"
