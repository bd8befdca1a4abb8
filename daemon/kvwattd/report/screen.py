"""A report in the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kvwattd.report import words
from kvwattd.report.figures import Figures, Report


def screen(report: Report) -> Group:
    """All instances together, then each, where there are several."""
    parts = [_table(report.total, report, "all instances" if len(report.instances) > 1 else "")]
    if len(report.instances) > 1:
        parts += [_table(one, report, one.name) for one in report.instances]
    return Group(*parts, Text(words.notes(report), style="dim"))


def _table(figures: Figures, report: Report, name: str) -> Table:
    title = f"kvwatt, {words.period(report)}: {name or figures.name}"
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for label, value in words.lines(figures, report):
        table.add_row(Text(label), Text(value))
    return table
