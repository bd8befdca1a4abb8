"""What `kvwatt replay --record` does: a recording and changes to a table, a file and a report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from kvwatt_sim.recording import Recorded, load_recording
from kvwatt_sim.replay.command import USAGE, ReplayFailed, told_plainly
from kvwatt_sim.replay.report import ReportError, write_report
from kvwatt_sim.replay.scenario import plant
from kvwatt_sim.replay.what_if import Change, ChangeError, Told, parse, serve
from kvwatt_sim.replay.what_if_cells import HEADINGS, Row, cells

BASE = (Change("driver default", default_clock=True), Change("kvwatt"))


@dataclass(frozen=True, slots=True)
class WhatIfOptions:
    """As on the command line. `slo`: limits like `ttft=3,tbt=0.2`; without a `=` those recorded."""

    record: Path
    plant: str
    slo: str
    changes: tuple[str, ...]
    json_file: Path | None = None
    html_file: Path | None = None


def run_what_if(options: WhatIfOptions, console: Console) -> None:
    """Prints the table; writes the files that were asked for. Raises ReplayFailed."""
    with told_plainly():
        card = plant(options.plant)
        recorded = load_recording(options.record)
        limits_s = _limits_s(options.slo, recorded)
        try:
            changes = [*BASE, *(parse(text) for text in options.changes)]
            with console.status("replaying"):
                answers = [serve(card, recorded, limits_s, change) for change in changes]
        except ChangeError as error:
            raise ReplayFailed(f"--what-if {error}", USAGE) from error
        rows = [measured(recorded, limits_s), *(_row(answer, answers[0]) for answer in answers)]
        console.print(table(rows))
        if options.json_file is not None:
            options.json_file.write_text(json.dumps({"version": 1, "rows": rows}, indent=1) + "\n")
        if options.html_file is not None:
            try:
                write_report(options.html_file, str(options.record), card, recorded, rows, answers)
            except ReportError as error:
                raise ReplayFailed(str(error)) from error


def _limits_s(slo: str, recorded: tuple[Recorded, ...]) -> dict[str, float]:
    if "=" in slo:
        try:
            return parse(slo).limits_s
        except ChangeError as error:
            raise ReplayFailed(f"--slo {error}", USAGE) from error
    limits = recorded[0].run.promised_s
    if not limits:
        raise ReplayFailed("the recording names no promises: give --slo ttft=3,tbt=0.2,e2e=60", USAGE)
    return dict(limits)


def measured(recorded: tuple[Recorded, ...], limits_s: dict[str, float]) -> Row:
    """What was recorded, as a row: the energy where every instance has readings."""
    lines = [line for one in recorded for line in one.requests]
    values = {
        "ttft": np.array([line.ttft_s for line in lines]),
        "tbt": np.array([line.tbt_s for line in lines if line.tbt_s is not None]),
        "e2e": np.array([line.e2e_s for line in lines]),
    }
    known = [one.energy_j for one in recorded if one.energy_j is not None]
    return {
        "what": "recorded",
        "energy_j": sum(known) if len(known) == len(recorded) else None,
        "saved": None,
        "tokens": sum(line.output_tokens for line in lines),
        "attainment": {
            name: float(np.mean(found <= limits_s[name])) if found.size else 1.0
            for name, found in values.items()
            if name in limits_s
        },
        "limits_s": limits_s,
        "p99_s": {
            name: float(np.quantile(found, 0.99, method="inverted_cdf")) if found.size else None
            for name, found in values.items()
        },
        "clock_changes": None,
    }


def _row(answer: Told, base: Told) -> Row:
    outcome, slo = answer.outcome, answer.promises.slo
    targets = {"ttft": slo.ttft, "tbt": slo.tbt, "e2e": slo.e2e, "itl": slo.itl}
    return {
        "what": answer.change.name,
        "energy_j": outcome.energy_j,
        "saved": 1.0 - outcome.energy_j / base.outcome.energy_j,
        "tokens": outcome.tokens,
        "attainment": outcome.attainment(slo),
        "limits_s": {name: target.limit_s for name, target in targets.items() if target is not None},
        "p99_s": {
            name: None if isnan(levels[0.99]) else levels[0.99]
            for name, levels in outcome.quantiles().items()
        },
        "clock_changes": outcome.clock_changes,
    }


def table(rows: list[Row]) -> Table:
    """For the terminal."""
    out = Table(caption="seconds: p99/promise, share kept; saved: against driver default, both simulated")
    for index, name in enumerate(HEADINGS):
        out.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        out.add_row(*cells(row))
    return out
