"""The live view: a line per instance, then what was decided last and why. Unknown is a dash, never zero."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvwattd.api.schemas import InstanceView, StatusView
from kvwattd.commands.status_alarms import alarms
from kvwattd.commands.status_pool import pool_parts
from kvwattd.commands.status_screen import REGIME_STYLES, UNKNOWN, headline, number, saved_short

BAR = 8
COLUMNS = (
    ("instance", "left"),
    ("regime", "left"),
    ("clock", "right"),
    ("runs at", "right"),
    ("power", "right"),
    ("running", "right"),
    ("waiting", "right"),
    ("KV cache", "left"),
    ("promises kept", "left"),
    ("saved (estimate)", "right"),
)


def frame(status: StatusView, lost: str | None = None) -> Group:
    """`lost`: why the newest look failed; what is shown is older then."""
    parts: list[RenderableType] = [headline(status)]
    if lost is not None:
        parts.append(Text(f"no answer: {lost}; what follows is older", style="bold red"))
    parts += [Text(told, style="bold red" if error else "yellow") for told, error in alarms(status)]
    parts.append(_instances(status))
    parts += [_why(view) for view in status.instances]
    parts += pool_parts(status.pool)
    parts.append(Text("q leaves", style="dim"))
    return Group(*parts)


def _instances(status: StatusView) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, side in COLUMNS:
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for view in status.instances:
        table.add_row(*_cells(view))
    return table


def _cells(view: InstanceView) -> list[Text | str]:
    actual = [gpu.clock_actual_mhz for gpu in view.gpus if gpu.clock_actual_mhz is not None]
    return [
        Text(view.name, style="bold"),
        Text(str(view.regime), style=REGIME_STYLES.get(view.regime, "yellow")),
        _target(view),
        f"{min(actual)} MHz" if actual else UNKNOWN,
        number(view.power_w, 1, " W", 0),
        number(view.running, 1, "", 0),
        number(view.waiting, 1, "", 0),
        _bar(view.kv_usage),
        _kept(view),
        saved_short(view),
    ]


def _target(view: InstanceView) -> Text:
    """The clock in force; in shadow mode the one decided on, marked."""
    if view.shadow is not None:
        told = "default" if view.shadow.clock_mhz is None else f"{view.shadow.clock_mhz} MHz"
        return Text(f"({told})", style="cyan")
    return Text("default" if view.clock_target_mhz is None else f"{view.clock_target_mhz} MHz")


def _bar(usage: float | None) -> Text:
    if usage is None:
        return Text(UNKNOWN)
    full = min(max(round(BAR * usage), 0), BAR)
    text = Text("█" * full, style="red" if usage > 0.9 else "green")
    text.append("·" * (BAR - full), style="dim")
    text.append(f" {100 * usage:.0f} %", style="default")
    return text


def _kept(view: InstanceView) -> Text:
    """Each promise with the share kept; red where it is broken."""
    text = Text()
    for metric, kept in view.attainment.items():
        broken = kept.ratio is not None and kept.ratio < kept.quantile
        text.append(
            f"{metric.value.upper()} {number(kept.ratio, 100, ' %', 1)}  ",
            style="red" if broken else "default",
        )
    return text if text.plain else Text(UNKNOWN)


def _why(view: InstanceView) -> Text:
    told = view.last_decision.reason if view.last_decision is not None else view.regime_reason
    text = Text(f"{view.name}  ", style="bold")
    text.append(told, style="default")
    return text
