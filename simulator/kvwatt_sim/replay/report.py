"""The what-if answer as one HTML file that needs nothing else: plotly's own script is inside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kvwatt_sim.cards import Card
from kvwatt_sim.recording import Recorded
from kvwatt_sim.replay.what_if import SAMPLE_S, Told
from kvwatt_sim.replay.what_if_cells import HEADINGS, JOULES_PER_KWH, Row, cells

CURVE_POINTS = 200
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;border-bottom:1px solid #d5d9de;"
    "text-align:right}td:first-child,th:first-child{text-align:left}p{max-width:45rem}"
)


class ReportError(Exception):
    """The report cannot be made."""


def write_report(
    path: Path,
    title: str,
    card: Card,
    recorded: Sequence[Recorded],
    rows: Sequence[Row],
    answers: Sequence[Told],
) -> None:
    """Raises ReportError without plotly, OSError."""
    try:
        import plotly.graph_objects as plots
    except ImportError as error:
        raise ReportError("plotly is not installed: pip install 'kvwatt[report]'") from error
    figures = [
        _energy(plots, answers),
        _over_time(plots, recorded, answers),
        *(_latencies(plots, recorded, answers, name) for name in ("ttft", "tbt", "e2e")),
    ]
    parts = [figure.to_html(full_html=False, include_plotlyjs=i == 0) for i, figure in enumerate(figures)]
    path.write_text(_page(title, card, recorded, rows, parts), encoding="utf-8")


def _page(
    title: str, card: Card, recorded: Sequence[Recorded], rows: Sequence[Row], parts: Sequence[str]
) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells(row)) + "</tr>" for row in rows
    )
    requests = sum(len(one.requests) for one in recorded)
    run = recorded[0].run
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>What if: {escape(title)}</h1>"
        f"<p>{requests} requests to {escape(run.model)} on {escape(run.gpu)}, {len(recorded)} instances, "
        f"served again on a simulated {escape(card.gpu_name)} with {escape(card.model)}. "
        "Savings compare simulated runs with each other; the recorded row shows how far the "
        "simulated plant is from the real one.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{''.join(parts)}</html>\n"
    )


def _energy(plots: Any, answers: Sequence[Told]) -> Any:  # noqa: ANN401 (untyped library)
    figure = plots.Figure(
        plots.Bar(
            x=[answer.change.name for answer in answers],
            y=[answer.outcome.energy_j / JOULES_PER_KWH for answer in answers],
        )
    )
    return figure.update_layout(title="Energy", yaxis_title="kWh")


def _over_time(plots: Any, recorded: Sequence[Recorded], answers: Sequence[Told]) -> Any:  # noqa: ANN401
    figure = plots.Figure()
    if len(recorded) == 1 and len(recorded[0].gpu) > 1:
        start_s = recorded[0].requests[0].arrival_s
        pairs = [(a, b) for a, b in pairwise(recorded[0].gpu) if b.energy_j >= a.energy_j and b.at_s > a.at_s]
        hours = [(b.at_s - start_s) / 3600 for _, b in pairs]
        watts = [(b.energy_j - a.energy_j) / (b.at_s - a.at_s) for a, b in pairs]
        figure.add_scatter(x=hours, y=watts, name="recorded", mode="lines")
    for answer in answers:
        hours = [time_s / 3600 for time_s in answer.times_s]
        figure.add_scatter(x=hours, y=answer.power_w, name=answer.change.name, mode="lines")
    return figure.update_layout(
        title=f"Power, means of {SAMPLE_S:g} s", xaxis_title="hours from the first request", yaxis_title="W"
    )


def _latencies(plots: Any, recorded: Sequence[Recorded], answers: Sequence[Told], name: str) -> Any:  # noqa: ANN401
    figure = plots.Figure()
    lines = [line for one in recorded for line in one.requests]
    found = [getattr(line, f"{name}_s") for line in lines]
    _curve(figure, "recorded", np.array([value for value in found if value is not None]))
    for answer in answers:
        _curve(figure, answer.change.name, answer.outcome.served.latencies()[name])
    return figure.update_layout(
        title=name.upper(), xaxis_title="seconds", xaxis_type="log", yaxis_title="share of requests within"
    )


def _curve(figure: Any, name: str, values: np.typing.NDArray[np.float64]) -> None:  # noqa: ANN401
    if values.size:
        levels = np.append(np.linspace(0.0, 0.99, CURVE_POINTS), (0.995, 0.999, 1.0))
        figure.add_scatter(x=np.quantile(values, levels).tolist(), y=levels.tolist(), name=name, mode="lines")
