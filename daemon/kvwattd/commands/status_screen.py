"""The status as tables for a terminal. Unknown is shown as a dash, never as zero."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvwattd.api.schemas import InstanceView, StatusView
from kvwattd.api.schemas.shadow import ShadowView
from kvwattd.commands.status_alarms import alarms
from kvwattd.commands.status_pool import pool_parts
from kvwattd.regime import Regime

UNKNOWN = "–"
REGIME_STYLES = {Regime.ACTIVE: "green", Regime.SHADOW: "cyan", Regime.FAILSAFE: "bold red"}


def screen(status: StatusView) -> Group:
    """Everything on one screen: a line for the daemon, then a block per instance."""
    parts: list[RenderableType] = [headline(status)]
    parts += [Text(told, style="bold red" if error else "yellow") for told, error in alarms(status)]
    parts += pool_parts(status.pool)
    for view in status.instances:
        parts += [Text(), title(view), facts(view)]
    return Group(*parts)


def headline(status: StatusView) -> Text:
    guard: str = status.guard.state
    if status.guard.last_error and guard == "disconnected":
        guard = f"{guard} ({status.guard.last_error})"
    p99 = number(status.decision_duration.p99_s, 1e3, " ms", 2)
    return Text(
        f"kvwatt {status.build.version}  mode {status.mode}  up {duration(status.uptime_s)}  "
        f"guard {guard}  decision p99 {p99}"
    )


def title(view: InstanceView) -> Text:
    text = Text(view.name, style="bold")
    text.append(f"  {view.regime}", style=REGIME_STYLES.get(view.regime, "yellow"))
    text.append(f"  {view.regime_reason}", style="dim")
    return text


def facts(view: InstanceView) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    table.add_column()
    for name, value in _rows(view):
        table.add_row(name, value)
    return table


def _source(view: InstanceView) -> str:
    tap = view.telemetry.tap
    if tap is None or tap.unused is None:
        return view.telemetry.source
    return f"{view.telemetry.source} (tap: {tap.unused})"


def _rows(view: InstanceView) -> list[tuple[str, str]]:
    rows = [("clock", _clock(view)), ("power", _power(view)), ("load", _load(view)), ("step", _step(view))]
    rows += [(f"SLO {metric}", text) for metric, text in _promises(view)]
    rows.append(("telemetry", f"{number(view.telemetry.age_s, 1, ' s', 1)} old, {_source(view)}"))
    if not view.telemetry.fresh and view.telemetry.last_error:
        rows.append(("", view.telemetry.last_error))
    rows.append(("model", f"{view.model.state} {view.model.hardware or view.model.reason}".strip()))
    if view.savings is not None:
        rows.append(("saved", _saved(view)))
    if view.shadow is not None:
        rows += [("would set", f"{_mhz(view.shadow.clock_mhz)}; shadow mode sets nothing")]
        rows += [("would save", _would_save(view.shadow)), ("would keep", _would_keep(view.shadow))]
    if view.last_decision is not None:
        rows.append(("why", view.last_decision.reason))
    if view.override is not None:
        rows.append(("override", f"{_mhz(view.override.clock_mhz)} for {duration(view.override.left_s)}"))
    return rows


def _mhz(clock_mhz: int | None) -> str:
    return "driver default" if clock_mhz is None else f"{clock_mhz} MHz"


def _clock(view: InstanceView) -> str:
    actual = ", ".join(number(gpu.clock_actual_mhz, 1, "", 0) for gpu in view.gpus) or UNKNOWN
    return f"{_mhz(view.clock_target_mhz)}, running at {actual} MHz; {view.clock_changes_total} changes"


def _power(view: InstanceView) -> str:
    return f"{number(view.power_w, 1, ' W', 0)}, {number(view.energy_j, 1e-3, ' kJ', 2)} since start"


def _load(view: InstanceView) -> str:
    running, waiting = number(view.running, 1, "", 0), number(view.waiting, 1, "", 0)
    now = f"{running} running, {waiting} waiting, KV {number(view.kv_usage, 100, ' %', 0)}"
    ahead = view.projection
    if ahead is None:
        return now
    later = f"{ahead.batch:.1f} running, KV {number(ahead.kv_usage, 100, ' %', 0)}"
    return f"{now}; in {ahead.horizon_s:g} s: {later}"


def _step(view: InstanceView) -> str:
    step = view.step
    predicted, measured = number(step.predicted_s, 1e3, " ms", 1), number(step.measured_s, 1e3, " ms", 1)
    drift = ", drifted" if step.drifted else ""
    return (
        f"predicted {predicted}, measured {measured}, error {number(step.error_ratio, 100, ' %', 1)}{drift}"
    )


def _promises(view: InstanceView) -> list[tuple[str, str]]:
    out = []
    for metric, target in (("ttft", view.slo.ttft), ("tbt", view.slo.tbt), ("e2e", view.slo.e2e)):
        if target is not None:
            kept = next((a.ratio for m, a in view.attainment.items() if m.value == metric), None)
            promise = f"{target.limit_s:g} s for {target.quantile:.1%}"
            out.append((metric, f"{promise}; attained {number(kept, 100, ' %', 2)}"))
    return out


def _saved(view: InstanceView) -> str:
    saved = view.savings
    if saved is None:
        return UNKNOWN
    share = number(saved.saved_ratio, 100, " %", 1)
    return f"{number(saved.saved_j, 1e-3, ' kJ', 2)} ({share}): an estimate, against {saved.baseline}"


def _would_save(shadow: ShadowView) -> str:
    if shadow.saved_ratio is None:
        return f"{UNKNOWN} (no energy counted in shadow mode yet)"
    half = ""
    if shadow.high_ratio is not None:
        half = f" ± {100 * (shadow.high_ratio - shadow.saved_ratio):.0f}"
    joules = number(shadow.saved_j, 1e-3, " kJ", 2)
    return f"{100 * shadow.saved_ratio:.1f} %{half} ({joules}): an estimate, against {shadow.baseline}"


def _would_keep(shadow: ShadowView) -> str:
    kept = [f"{m.value.upper()} {number(k.ratio, 100, ' %', 2)}" for m, k in shadow.attainment.items()]
    return f"{', '.join(kept) or UNKNOWN}: an estimate"


def saved_short(view: InstanceView) -> str:
    """The share saved; in shadow mode, in brackets, what would have been."""
    if view.shadow is not None:
        told = number(view.shadow.saved_ratio, 100, " %", 1)
        return f"({told})" if told != UNKNOWN else UNKNOWN
    return UNKNOWN if view.savings is None else number(view.savings.saved_ratio, 100, " %", 1)


def number(value: float | None, scale: float, unit: str, digits: int) -> str:
    return UNKNOWN if value is None else f"{value * scale:.{digits}f}{unit}"


def duration(seconds: float) -> str:
    """1 h 02 min 03 s, without the leading parts that are zero."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours} h {m:02} min {s:02} s"
    return f"{m} min {s:02} s" if m else f"{s} s"
