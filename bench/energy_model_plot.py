"""Importance, partial dependence and predicted against counted, as one HTML page (needs plotly)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kvwatt.energy_effects import Dependence
from kvwatt.lattice import Floats


def write_plot(
    path: Path,
    importance: Mapping[str, float],
    dependences: Sequence[Dependence],
    predicted: tuple[Floats, Floats],
    title: str,
) -> None:
    """`predicted`: joules counted and predicted of the same windows."""
    from plotly.subplots import make_subplots

    names = [item.factor for item in dependences]
    rows = 1 + -(-len(names) // 3)
    figure = make_subplots(
        rows=rows,
        cols=3,
        subplot_titles=("accuracy lost when shuffled, %", "", "window energy, J", *names),
        specs=[[{"colspan": 2}, None, {}], *([[{}, {}, {}]] * (rows - 1))],
    )
    shown = list(importance.items())[:12][::-1]
    figure.add_bar(
        x=[100.0 * lost for _, lost in shown], y=[name for name, _ in shown], orientation="h", row=1, col=1
    )
    counted, said = predicted
    figure.add_scattergl(x=counted, y=said, mode="markers", marker={"size": 3}, row=1, col=3)
    ends = [float(counted.min()), float(counted.max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", row=1, col=3)
    for place, item in enumerate(dependences):
        figure.add_scatter(x=item.values, y=item.power_w, row=2 + place // 3, col=1 + place % 3)
    figure.update_layout(title=title, showlegend=False, height=320 * rows, template="plotly_white")
    path.write_text(figure.to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")
