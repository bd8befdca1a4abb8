"""The same figures in words, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from kvwatt.savings_stats import SloCost
from kvwattd.money import J_PER_KWH, Bill
from kvwattd.report.figures import Figures, Kept, Report, Saving

UNKNOWN = "–"


def energy(joules: float) -> str:
    """In the unit that reads best, to about three figures."""
    size = abs(joules)
    if size < 1e4:
        return f"{joules:,.0f} J"
    if size < 0.1 * J_PER_KWH:
        return f"{joules / 1e3:,.0f} kJ"
    kwh = joules / J_PER_KWH
    digits = 3 if abs(kwh) < 1 else 2 if abs(kwh) < 10 else 1 if abs(kwh) < 1000 else 0
    return f"{kwh:,.{digits}f} kWh"


def moment(ms: int) -> str:
    """Local time, to the minute."""
    return f"{datetime.fromtimestamp(ms / 1e3).astimezone():%Y-%m-%d %H:%M}"


def period(report: Report) -> str:
    return f"{moment(report.from_ms)} to {moment(report.to_ms)}"


def saved(saving: Saving) -> str:
    """Amount and share, with its interval or the word that there is none."""
    share = f" ({saving.ratio:.1%})" if saving.ratio is not None else ""
    if saving.low_j is None or saving.high_j is None:
        between = "no interval"
    else:
        low, high = energy(saving.low_j), energy(saving.high_j)
        between = f"{low} to {high}"
        if saving.baseline_j > 0:
            between += f" ({saving.low_j / saving.baseline_j:.1%} to {saving.high_j / saving.baseline_j:.1%})"
    return f"{energy(saving.saved_j)}{share}; {between}"


def heading(saving: Saving) -> str:
    return f"{'would have saved' if saving.would else 'saved'} against {saving.baseline}"


def attainment(each: Mapping[str, Kept]) -> str:
    told = [f"{m.upper()} {kept.ratio:.2%} of {kept.seen:,.0f}" for m, kept in each.items()]
    return ", ".join(told) or UNKNOWN


def in_short(figures: Figures) -> str | None:
    """What shadow mode comes to: would have saved 31 % ± 2 at 99.6 %; None where there was no shadow mode."""
    saving = next((s for s in figures.savings if s.would), None)
    if saving is None or saving.ratio is None:
        return None
    told = f"would have saved {100 * saving.ratio:.0f} %"
    if saving.high_j is not None:
        told += f" ± {100 * (saving.high_j - saving.saved_j) / saving.baseline_j:.0f}"
    least = min((kept.ratio for kept in figures.would_attainment.values()), default=None)
    if least is not None:
        told += f" at {100 * least:.1f} % (the promise kept least)"
    return f"{told}: estimates of the model, nothing was set"


def cost(metric: str, found: SloCost) -> str:
    return (
        f"{metric.upper()}: {found.controlled:.2%} in control, {found.default:.2%} at default; "
        f"given up {100 * found.cost:+.2f} points ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
    )


def money(found: Bill | None, currency: str) -> str:
    """Cost and CO2, whichever is known."""
    parts = []
    if found is not None and found.money is not None:
        parts.append(f"{found.money:,.2f} {currency}")
    if found is not None and found.co2_g is not None:
        parts.append(f"{found.co2_g / 1e3:,.2f} kg CO2")
    if found is not None and parts and found.unpriced_j > 0:
        parts.append(f"without {energy(found.unpriced_j)} of unknown price")
    return ", ".join(parts) or "unknown: set [cost]"


def shares(parts: dict[str, float]) -> str:
    total = sum(parts.values()) or 1.0
    return ", ".join(f"{name} {value / total:.1%}" for name, value in parts.items()) or UNKNOWN


def notes(report: Report) -> str:
    """What holds for all figures."""
    told = f"Intervals are of {report.level:.0%}. Energy is that of the GPUs."
    if report.windows:
        told += f" Of {report.windows} windows the seed in the ledger draws {report.windows_drawn}."
    return told


def lines(figures: Figures, report: Report) -> list[tuple[str, str]]:
    """Name and value of everything there is to say of one instance or all."""
    f = figures
    measured = f"{f.estimated_j / f.energy_j:.2%} of it estimated" if f.estimated_j else "all from counters"
    hours = f"{f.hours:.1f} h" if f.name else f"{f.hours:.1f} hours of instances"
    found = [
        ("energy", f"{energy(f.energy_j)} over {hours}, {measured}" if f.energy_j else UNKNOWN),
        ("cost", money(f.bill, report.currency)),
        ("tokens", f"{f.generation_tokens:,} generated, {f.prompt_tokens:,} prompt tokens computed"),
        ("requests", f"{f.requests:,} finished"),
        ("energy per token", f"{f.j_per_token:.3g} J per generated token" if f.j_per_token else UNKNOWN),
        ("mean clock", f"{f.clock_mhz:.0f} MHz" if f.clock_mhz else UNKNOWN),
        ("promises kept", attainment(f.attainment)),
        ("time by regime", shares(dict(f.regimes_h))),
        ("decisions by reason", shares({name: float(n) for name, n in f.decisions.items()})),
        ("time in control", f"{f.controlled_h:.2f} h, and {f.held_h:.2f} h held at default to measure"),
    ]
    if f.would_attainment:
        found.append(("promises that would have been kept", f"{attainment(f.would_attainment)}; an estimate"))
    found += [(heading(saving), f"{saved(saving)}; {saving.note}") for saving in f.savings]
    short = in_short(f)
    if short is not None:
        found.insert(0, ("shadow mode", short))
    if not any(saving.windows for saving in f.savings):
        why = "no time in control" if not f.controlled_h else "fewer than three windows at default so far"
        found.append(("saved, measured", f"not known: {why}"))
    if f.saved_bill is not None and f.savings:
        would = "would have been saved" if f.savings[0].would else "saved"
        found.append((f"cost {would}", money(f.saved_bill, report.currency)))
    if f.disagrees is not None:
        told = "DISAGREE: train the model again" if f.disagrees else "agree"
        found.append(("model and measurement", told))
    found += [("cost in promises", cost(metric, told)) for metric, told in f.slo_cost.items()]
    return found
