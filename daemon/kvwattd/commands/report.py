"""`kvwatt report`: what was used and saved, from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands.refusal import refuse
from kvwattd.commands.working import working

if TYPE_CHECKING:
    from kvwattd.ledger.entry import Entry
    from kvwattd.money import CostConfig
    from kvwattd.report.figures import Report

CONFIG = Path("/etc/kvwatt/kvwatt.toml")
STATE_DIR = Path("/var/lib/kvwatt")


def report(
    start: Annotated[str, typer.Option("--from", help="Date, time or so long ago: today, 7d.")] = "24h",
    end: Annotated[str, typer.Option("--to", help="As --from.")] = "now",
    db: Annotated[
        Path | None, typer.Option(help="The ledger; default: ledger.db in the configuration's state_dir.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration, for state_dir and [cost].", show_default=str(CONFIG), envvar="KVWATT_CONFIG"
        ),
    ] = None,
    instance: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    price: Annotated[float | None, typer.Option(help="Per kWh, instead of [cost].")] = None,
    intensity: Annotated[float | None, typer.Option(help="Grams of CO2 per kWh, instead of [cost].")] = None,
    cost_file: Annotated[
        Path | None, typer.Option(help="CSV: time, price_per_kwh, intensity_g_per_kwh; instead of [cost].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with plots (extra 'report').")
    ] = None,
) -> None:
    """Show what was used and saved, each saving with its baseline, its interval and the promises kept.

    Of time in shadow mode it says what would have been saved and kept. Ends with 1 where there is nothing to
    show. Examples: kvwatt report; kvwatt report --from 7d --html week.html; kvwatt report --from 2026-03-01
    --to 2026-04-01 --json
    """
    from_ms, to_ms = _range(start, end)
    path, cost = _settings(config, db)
    told = {"price_per_kwh": price, "intensity_g_per_kwh": intensity, "file": cost_file}
    with working("adding up the ledger"):
        found, rows = _made(path, from_ms, to_ms, instance or [], _cost(cost, told))
    if html is not None:
        with working("drawing the page"):
            _write(html, found, rows)
    if as_json:
        typer.echo(_as_json(found))
        return
    from rich.console import Console

    from kvwattd.report.screen import screen

    Console().print(screen(found))


def _range(start: str, end: str) -> tuple[int, int]:
    from datetime import datetime

    from kvwattd.report.range import moment_ms

    now = datetime.now().astimezone()
    moments = []
    for option, text in (("--from", start), ("--to", end)):
        try:
            moments.append(moment_ms(text, now))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from error
    if moments[0] >= moments[1]:
        raise typer.BadParameter(f"{start!r} is not before --to {end!r}", param_hint="--from")
    return moments[0], moments[1]


def _settings(config: Path | None, db: Path | None) -> tuple[Path, CostConfig]:
    """Where the ledger is and what energy costs; without a configuration the defaults."""
    from kvwattd.config import ConfigError, load_config
    from kvwattd.ledger.day import FILE_NAME
    from kvwattd.money import CostConfig

    chosen = config or CONFIG
    if config is None and (db is not None or not chosen.exists()):
        return db or STATE_DIR / FILE_NAME, CostConfig()
    try:
        loaded = load_config(chosen)
    except ConfigError as error:
        refuse("report", error, f"edit {chosen}, or give the ledger by --db")
    return db or loaded.daemon.state_dir / FILE_NAME, loaded.cost


def _cost(cost: CostConfig, told: dict[str, float | Path | None]) -> CostConfig:
    from pydantic import ValidationError

    given = {name: value for name, value in told.items() if value is not None}
    try:
        return type(cost).model_validate({**cost.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{first['loc'][0]} = {first['input']!r}: {first['msg']}") from error


def _made(
    path: Path, from_ms: int, to_ms: int, instances: list[str], cost: CostConfig
) -> tuple[Report, list[Entry]]:
    from kvwattd.ledger.reading import LedgerUnreadableError, read, runs
    from kvwattd.money import CostFileError, load_rates
    from kvwattd.report.figures import make

    try:
        rows, began = read(path, from_ms, to_ms, instances), runs(path)
        rates = load_rates(cost)
    except LedgerUnreadableError as error:
        refuse("report", error, "see that `kvwatt run` keeps a ledger ([ledger] enabled), or give --db", 1)
    except CostFileError as error:
        refuse("report", error, "mend the file, or leave it out")
    if not rows:
        refuse("report", f"{path}: nothing in this range", "choose another --from and --to", 1)
    return make(rows, from_ms, to_ms, rates, began), rows


def _write(html: Path, found: Report, rows: list[Entry]) -> None:
    from kvwattd.report.curves import days, points
    from kvwattd.report.page import PageError, write_page

    try:
        write_page(html, found, points(rows, found), days(rows))
    except (PageError, OSError) as error:
        refuse("report", error, "choose another file, or leave --html out", 1)


def _as_json(found: Report) -> str:
    import json
    from dataclasses import asdict

    document = asdict(found)
    for one, figures in zip(
        [document["total"], *document["instances"]], [found.total, *found.instances], strict=True
    ):
        one["j_per_token"] = figures.j_per_token
        for saving, told in zip(one["savings"], figures.savings, strict=True):
            saving["ratio"] = told.ratio
    return json.dumps(document, indent=2)
