"""Rate, members and power over the day, every policy of every setting. Part of bench/day.py."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from day_bars import Table
from energy_plot import COLOURS
from kvwatt_sim.day.result import SAMPLE_COLUMNS, DayRow

WIDTH, ROW_HEIGHT = 1500, 260
SMOOTH = 6  # samples in a mean
PANELS = (
    ("arrivals_per_s", "requests/s"),
    ("ready", "ready members"),
    ("power_w", "W"),
    ("clock_mhz", "MHz"),
)


def write_plot(path: Path, table: Table) -> None:
    """Four panels per setting, of the first seed."""
    settings = list(table.cells)
    titles = [f"{setting}: {words}" for setting in settings for _, words in PANELS]
    figure = make_subplots(len(titles), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.03)
    names = list(dict.fromkeys(name for policies in table.cells.values() for name in policies))
    for place, setting in enumerate(settings):
        for policy, rows in table.cells[setting].items():
            day = next(iter(rows.values())).day
            for panel, (column, _) in enumerate(PANELS):
                if panel == 0 and policy != next(iter(table.cells[setting])):
                    continue  # the rate is everybody's
                line = _line(day, column, policy, names.index(policy), first=place == 0 and panel == 1)
                figure.add_trace(line, row=place * len(PANELS) + panel + 1, col=1)
    figure.update_layout(width=WIDTH, height=ROW_HEIGHT * len(titles) + 120, hovermode="x unified")
    figure.update_xaxes(title="hours of the day served", row=len(titles), col=1)
    figure.write_html(path, include_plotlyjs=True)


def _line(day: DayRow, column: str, policy: str, number: int, *, first: bool) -> go.Scatter:
    at, wanted = SAMPLE_COLUMNS.index("at_s"), SAMPLE_COLUMNS.index(column)
    rows = day["samples"]
    groups = [rows[i : i + SMOOTH] for i in range(0, len(rows), SMOOTH)]
    return go.Scatter(
        x=[group[-1][at] / 3600.0 for group in groups],
        y=[sum(row[wanted] for row in group) / len(group) for group in groups],
        name=policy,
        legendgroup=policy,
        showlegend=first,
        line={"color": COLOURS[number % len(COLOURS)], "shape": "hv"},
    )
