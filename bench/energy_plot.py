"""Energy saved against attainment, every policy of every setting. Part of bench/energy.py."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from energy_bars import Table, name_of
from energy_runs import BOUND

WIDTH, ROW_HEIGHT = 1500, 340
LOWEST_KEPT = 90.0  # what keeps less is drawn at the edge


def write_plot(path: Path, table: Table) -> None:
    """One panel per setting; up and to the right is better, left of the line does not count."""
    settings = list(table.cells)
    columns = min(4, len(settings))
    rows = -(-len(settings) // columns)
    names = list(dict.fromkeys(p for policies in table.cells.values() for p in policies if p != BOUND))
    figure = make_subplots(rows, columns, subplot_titles=[name_of(s) for s in settings])
    for place, setting in enumerate(settings):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        for policy in table.cells[setting]:
            if policy != BOUND:
                first = place == 0
                figure.add_trace(_point(table, setting, policy, names.index(policy), first=first), **at)
        figure.add_vline(x=99.0, line_dash="dot", **at)
        if BOUND in table.cells[setting]:
            figure.add_hline(y=fmean(table.saved(setting, BOUND, "max")), line_dash="dash", **at)
    figure.update_xaxes(title="kept on the worst metric and seed, %", range=[LOWEST_KEPT - 0.5, 100.3])
    figure.update_yaxes(title="energy saved, %")
    title = "Energy saved against the driver default, and promises kept; dashed: proven bound"
    figure.update_layout(title=title, width=WIDTH, height=ROW_HEIGHT * rows + 120)
    figure.write_html(path, include_plotlyjs=True)


def _point(
    table: Table, setting: tuple[str, str, str, float], policy: str, number: int, *, first: bool
) -> go.Scatter:
    kept = 100.0 * table.kept(setting, policy)
    saved = table.saved(setting, policy, "max")
    return go.Scatter(
        x=[max(kept, LOWEST_KEPT)],
        y=[fmean(saved)],
        error_y={
            "type": "data",
            "array": [max(saved) - fmean(saved)],
            "arrayminus": [fmean(saved) - min(saved)],
        },
        mode="markers",
        name=policy,
        legendgroup=policy,
        showlegend=first,
        marker={"symbol": number, "size": 10, "color": COLOURS[number % len(COLOURS)]},
        hovertemplate=f"{policy}: %{{y:.1f}} % saved, {kept:.2f} % kept<extra></extra>",
    )


COLOURS = (
    "#222222", "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd",
    "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#000080", "#800000",
)  # fmt: skip
