"""`kvwatt predict`: step time, its upper bound and power for the points of a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands.refusal import refuse

if TYPE_CHECKING:
    from kvwatt.throughput import StepModel

ADDED = ("step_time_s", "step_time_upper_s", "power_w")


def predict(
    model: Annotated[Path, typer.Option(help="Directory of the model.")],
    points: Annotated[
        Path,
        typer.Option(
            help="CSV with clock_mhz and decode_batch, kv_tokens, prefill_tokens; or freq_mhz, batch, "
            "context_tokens; or freq_mhz, input_tokens."
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: standard output.")] = None,
) -> None:
    """Write the points back with `step_time_s`, `step_time_upper_s` (90 % bound) and `power_w`.

    Example: kvwatt predict --model /var/lib/kvwatt/model --points points.csv
    """
    from kvwatt import artifact
    from kvwatt.profiles import ProfileError

    try:
        text = points.read_text(encoding="utf-8", errors="replace")
        answer = predict_csv(artifact.load(model), text, str(points))
        if output is not None:
            output.write_text(answer, encoding="utf-8")
    except (artifact.ArtifactError, ProfileError, OSError) as error:
        told = "give the folder that `kvwatt train` wrote, and points as in kvwatt predict --help"
        refuse("predict", error, told)
    if output is None:
        typer.echo(answer, nl=False)


def predict_csv(model: StepModel, text: str, name: str) -> str:
    """The CSV `text` with three more columns. Raises ProfileError."""
    import csv
    import io

    import numpy as np

    from kvwatt.profiles import parse_points

    header, records, loads = parse_points(text, name)
    clock, batch, kv, prefill = np.array(loads, dtype=np.float64).T
    step_s = model.step_time_s(clock, batch, kv, prefill)
    watts = model.power_w(clock, batch, kv, prefill)
    kept = [column for column in header if column not in ADDED]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*kept, *ADDED])
    for record, seconds, power in zip(records, step_s, watts, strict=True):
        numbers = (seconds, seconds * model.upper_factor, power)
        writer.writerow([*(record[column] for column in kept), *(f"{number:.9g}" for number in numbers)])
    return out.getvalue()
