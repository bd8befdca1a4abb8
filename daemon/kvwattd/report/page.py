"""A report as one HTML file that needs nothing else: plotly's own script is inside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from kvwattd.money import J_PER_KWH
from kvwattd.report import words
from kvwattd.report.curves import Day, Point
from kvwattd.report.figures import Figures, Report

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;width:100%}td{padding:.3rem .6rem;border-bottom:1px solid #d5d9de;"
    "vertical-align:top}td:first-child{font-weight:600;width:22rem}p{max-width:45rem}"
)


class PageError(Exception):
    """The page cannot be made."""


def write_page(path: Path, report: Report, points: Sequence[Point], days: Sequence[Day]) -> None:
    """Raises PageError without plotly, OSError."""
    try:
        import plotly.graph_objects as plots
    except ImportError as error:
        raise PageError("plotly is not installed: pip install 'kvwatt[report]'") from error
    figures = [
        _power(plots, points),
        _clock(plots, points),
        _saving(plots, points, days, report.total),
        _attainment(plots, points),
        _per_token(plots, points),
        _decisions(plots, report.total),
    ]
    parts = [figure.to_html(full_html=False, include_plotlyjs=i == 0) for i, figure in enumerate(figures)]
    path.write_text(_page(report, parts), encoding="utf-8")


def _page(report: Report, parts: Sequence[str]) -> str:
    shown = [report.total, *(report.instances if len(report.instances) > 1 else ())]
    tables = "".join(f"<h2>{escape(f.name or 'All')}</h2>{_table(f, report)}" for f in shown)
    title = f"kvwatt, {words.period(report)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{tables}"
        f"<p>{escape(words.notes(report))}</p>"
        f"{''.join(parts)}</body></html>\n"
    )


def _table(figures: Figures, report: Report) -> str:
    rows = (
        f"<tr><td>{escape(label)}</td><td>{escape(value)}</td></tr>"
        for label, value in words.lines(figures, report)
    )
    return f"<table>{''.join(rows)}</table>"


def _times(points: Sequence[Point]) -> list[datetime]:
    return [datetime.fromtimestamp(p.start_ms / 1e3, UTC) for p in points]


def _figure(plots: Any, title: str, unit: str, *traces: Any) -> Any:  # noqa: ANN401 (plotly has no types)
    figure = plots.Figure(list(traces))
    figure.update_layout(
        title=title, yaxis_title=unit, height=360, template="plotly_white", margin={"t": 50, "b": 40}
    )
    return figure


def _power(plots: Any, points: Sequence[Point]) -> Any:  # noqa: ANN401
    at = _times(points)
    used = plots.Scatter(x=at, y=[p.power_w for p in points], name="used", line_shape="hv")
    default = plots.Scatter(
        x=at, y=[p.baseline_w for p in points], name="at driver default", line={"dash": "dot"}
    )
    would = plots.Scatter(
        x=at, y=[p.would_w for p in points], name="in control, an estimate", line={"dash": "dot"}
    )
    held = [p for p in points if p.held]
    windows = plots.Scatter(
        x=_times(held), y=[p.power_w for p in held], name="held at default", mode="markers"
    )
    shadowed = [would] if any(p.would_w is not None for p in points) else []
    return _figure(plots, "Power", "W", used, default, windows, *shadowed)


def _clock(plots: Any, points: Sequence[Point]) -> Any:  # noqa: ANN401
    trace = plots.Scatter(x=_times(points), y=[p.clock_mhz for p in points], line_shape="hv")
    return _figure(plots, "Clock", "MHz, mean", trace)


def _saving(plots: Any, points: Sequence[Point], days: Sequence[Day], total: Figures) -> Any:  # noqa: ANN401
    """By days where there are several with an interval, else as it grew, with the interval of the whole."""
    if len(days) >= 2:
        saved = [day.saved_j / J_PER_KWH for day in days]
        trace = plots.Bar(
            x=[datetime.fromtimestamp(day.start_ms / 1e3, UTC) for day in days],
            y=saved,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [(day.high_j - day.saved_j) / J_PER_KWH for day in days],
                "arrayminus": [(day.saved_j - day.low_j) / J_PER_KWH for day in days],
            },
        )
        return _figure(plots, "Saved by day, measured, with its 95 % interval", "kWh", trace)
    grown, sum_j = [], 0.0
    for p in points:
        drawn_w = p.power_w if p.would_w is None else p.would_w
        sum_j += ((p.baseline_w or p.power_w) - drawn_w) * (p.end_ms - p.start_ms) / 1e3
        grown.append(sum_j / J_PER_KWH)
    would = any(p.would_w is not None for p in points)
    name = "saved, in shadow mode what would have been" if would else "saved"
    traces = [plots.Scatter(x=_times(points), y=grown, name=name)]
    first = total.savings[0] if total.savings else None
    if first is not None and first.low_j is not None and first.high_j is not None and first.saved_j:
        for name, end_j in (("low", first.low_j), ("high", first.high_j)):
            scaled = [y * end_j / first.saved_j for y in grown]
            traces.append(plots.Scatter(x=_times(points), y=scaled, name=name, line={"dash": "dot"}))
    return _figure(plots, "Saved so far, with the interval of the whole", "kWh", *traces)


def _attainment(plots: Any, points: Sequence[Point]) -> Any:  # noqa: ANN401
    names = sorted({name for p in points for name in p.attainment})
    traces = [
        plots.Scatter(
            x=_times(points),
            y=[100 * p.attainment[n] if n in p.attainment else None for p in points],
            name=n.upper(),
        )
        for n in names
    ]
    return _figure(plots, "Promises kept", "% of requests", *traces)


def _per_token(plots: Any, points: Sequence[Point]) -> Any:  # noqa: ANN401
    trace = plots.Scatter(x=_times(points), y=[p.j_per_token for p in points])
    return _figure(plots, "Energy per generated token", "J", trace)


def _decisions(plots: Any, total: Figures) -> Any:  # noqa: ANN401
    trace = plots.Bar(x=list(total.decisions), y=list(total.decisions.values()))
    return _figure(plots, "What kept the clock from being lower", "decisions", trace)
