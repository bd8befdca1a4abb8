"""`kvwatt train`: profile tables, or telemetry of a fleet, in; model artifact and its errors out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands.refusal import refuse
from kvwattd.commands.working import working

if TYPE_CHECKING:
    from kvwatt.manifest import Manifest
    from kvwatt.profiles import ProfileTable
    from kvwatt.training import Origin

LABELS = {
    "ips_r2": "iterations/s R2",
    "ips_mae": "iterations/s MAE",
    "decode_mape": "decode step time MAPE",
    "prefill_mape": "prefill time MAPE",
    "power_mape": "power MAPE",
    "power_batch16_mape": "power MAPE, batch >= 16",
}
SPLITS = {"fold": "random folds", "clock": "clock left out", "inner_clock": "inner clock left out"}


# Where the measurements come from
Profiles = Annotated[
    list[Path] | None,
    typer.Option(help="Table written by `kvwatt profile`, or decode table; may be repeated."),
]
Telemetry = Annotated[
    list[str] | None,
    typer.Option(
        help="Parquet files with the columns of a profile, such as 'DIR/*.parquet', at the same path on "
        "every worker; may be repeated. Needs --scheduler."
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Dask scheduler, such as tcp://HOST:8786; its workers need kvwatt[fleet]."),
]
Prefill = Annotated[list[Path] | None, typer.Option(help="Prefill table, when it is separate.")]
Idle = Annotated[list[Path] | None, typer.Option(help="Idle power table, when it is separate.")]
# What they are of
Hardware = Annotated[
    str | None, typer.Option(help="GPU name as the driver states it; default: what the table says.")
]
Tp = Annotated[int | None, typer.Option(help="Tensor-parallel size, when the table has several.")]
# What comes of them
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory for the model.")]
Folds = Annotated[int | None, typer.Option(min=2, help="Random folds; default 10, or 5 above 500 rows.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the errors as JSON.")]


def train(
    output: Output,
    profile: Profiles = None,
    telemetry: Telemetry = None,
    scheduler: Scheduler = None,
    prefill: Prefill = None,
    idle: Idle = None,
    hardware: Hardware = None,
    tp: Tp = None,
    folds: Folds = None,
    json_output: AsJson = False,
) -> None:
    """Fit the step-time and power model and report its errors on points that were left out.

    On this machine from --profile, or on a Dask cluster from --telemetry. Ends with 2 where the tables cannot
    carry a model. Examples: kvwatt train --profile profile.csv -o /var/lib/kvwatt/model;
    kvwatt train --profile profile.csv -o model --json
    """
    from kvwatt import artifact
    from kvwatt.profiles import ProfileError
    from kvwatt.training import TrainingError
    from kvwatt.training import train as fit_model
    from kvwattd.fleet.telemetry import TelemetryError
    from kvwattd.fleet.training import FleetError, train_fleet

    tables = [*(profile or ()), *(prefill or ()), *(idle or ())]
    _check_sources(bool(profile), bool(tables), bool(telemetry), scheduler, folds)
    try:
        if scheduler is not None and telemetry:
            with working(f"training on {scheduler}"):
                model, table = train_fleet(scheduler, telemetry, hardware, tp, _now())
        else:
            table, origin = read_tables(tables, hardware, tp)
            with working("fitting, and judging on points left out"):
                model = fit_model(table, origin, folds=folds)
        artifact.save(model, output, table)
    except TrainingError as error:
        refuse("train", error, "measure longer: kvwatt profile --minutes 10 (kvwatt profile --help)")
    except (ProfileError, TelemetryError, FleetError, OSError) as error:
        refuse("train", error, "tables as `kvwatt profile` writes them: kvwatt profile --help")
    if json_output:
        typer.echo(_as_json(model.manifest, model.upper_factor, output))
    else:
        _show(model.manifest, model.upper_factor, output)


def _check_sources(
    profile: bool, tables: bool, telemetry: bool, scheduler: str | None, folds: int | None
) -> None:
    """Either tables or telemetry; what belongs to the other is refused, not ignored."""
    if telemetry and tables:
        raise typer.BadParameter(
            "give --profile to train here or --telemetry to train on a cluster, not both"
        )
    if telemetry != (scheduler is not None):
        raise typer.BadParameter("--telemetry and --scheduler go together")
    if telemetry and folds is not None:
        raise typer.BadParameter("--folds is for --profile: telemetry is judged on a fifth of its points")
    if not telemetry and not profile:
        raise typer.BadParameter("nothing to train on: give --profile, or --telemetry with --scheduler")


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")


def read_tables(paths: list[Path], hardware: str | None, tp: int | None) -> tuple[ProfileTable, Origin]:
    """All tables as one, and where they come from. Raises ProfileError, OSError."""
    from kvwatt.profiles import ProfileError, parse_csv, parse_notes, table_of
    from kvwatt.training import Origin

    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in paths}
    notes = {key: value for text in texts.values() for key, value in parse_notes(text).items()}
    rows = [row for path, text in texts.items() for row in parse_csv(text, str(path))]
    name = hardware or notes.get("hardware")
    if not name:
        raise ProfileError("the tables do not say which GPU they come from: give --hardware NAME")
    vllm, served = notes.get("vllm_version", "unknown"), notes.get("model_name", "unknown")
    return table_of(rows, tp), Origin(name, vllm, served, _now())


def _as_json(manifest: Manifest, upper_factor: float, output: Path) -> str:
    import json

    document = {"model": str(output), "upper_factor": upper_factor, **manifest.as_dict()}
    return json.dumps(document, indent=2)


def _show(manifest: Manifest, upper_factor: float, output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    splits = [split for split in SPLITS if any(key.startswith(f"{split}_") for key in manifest.errors)]
    shown = Table(
        title=f"{manifest.hardware}, tp {manifest.tp}: errors on unseen points, {manifest.rows} rows"
    )
    shown.add_column("measure")
    for split in splits:
        shown.add_column(SPLITS[split], justify="right")
    for key, label in LABELS.items():
        values = [manifest.errors.get(f"{split}_{key}") for split in splits]
        shown.add_row(label, *(_cell(key, value) for value in values))
    console = Console()
    console.print(shown)
    low, high = manifest.clock_range_mhz
    console.print(f"90 % of unseen steps take at most {upper_factor:.3f} x predicted; {low:g}-{high:g} MHz")
    console.print(f"model written to {output}")


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if key.endswith("mape") else f"{value:.4f}"
