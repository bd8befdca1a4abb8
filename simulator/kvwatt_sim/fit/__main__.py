"""Fit a card's laws, print the errors, and write the numbers into the card when told to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from kvwatt_sim.cards import Card, load
from kvwatt_sim.cards.load import FOLDER
from kvwatt_sim.fit.laws import Laws, busy_points, fit_power, fit_step
from kvwatt_sim.fit.report import power_error, step_errors
from kvwatt_sim.fit.rewrite import rewrite
from kvwatt_sim.fit.tables import a100_power, l20_idle, l20_steps

A100_KERNEL_CAP_W = 300.0  # of the measured PCIe card


def fit_l20(card: Card, data: Path) -> Card:
    """Step time from the decode and prefill tables, then power at the activity this gives."""
    points, idle = l20_steps(data), l20_idle(data)
    laws = Laws(card.step, card.power, card.supported_mhz, card.power_cap_w)
    laws = replace(laws, step=fit_step(points, laws))
    # Six idle readings against 150 busy ones: without the weight they would not be seen.
    trusted = tuple(replace(point, weight=2.0) for point in idle)
    power = fit_power(busy_points(points, laws) + trusted, card.power.f_ref_mhz, card.power_cap_w)
    return replace(card, step=laws.step, power=power)


def fit_a100(card: Card, data: Path) -> Card:
    """Power only: no step times over the clock are published for this card's model."""
    points = a100_power(data)
    return replace(card, power=fit_power(points, card.power.f_ref_mhz, A100_KERNEL_CAP_W))


FITS = {"l20": fit_l20, "a100": fit_a100}


def report(card: Card, data: Path) -> list[str]:
    """Lines with the card's errors against the tables it is fitted to."""
    if card.name == "l20":
        return step_errors(card, l20_steps(data), l20_idle(data)).lines()
    return [f"{'power':20s} {power_error(card, a100_power(data)):7.2%}"]


def write(card: Card, folder: Path = FOLDER) -> Path:
    """Put the laws into the card's file."""
    path = folder / f"{card.name}.toml"
    values = {"power": asdict(card.power)}
    if card.name == "l20":
        values[f"engine.tp{card.tp}.step"] = asdict(card.step)
    path.write_text(rewrite(path.read_text(encoding="utf-8"), values), encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kvwatt_sim.fit", description=__doc__)
    parser.add_argument("--card", required=True, choices=sorted(FITS))
    parser.add_argument("--data", type=Path, required=True, help="folder with profiles/ and power/")
    parser.add_argument("--write", action="store_true", help="write the numbers into the card")
    options = parser.parse_args(arguments)
    try:
        card = FITS[options.card](load(options.card), options.data)
    except (OSError, KeyError, ValueError) as error:
        print(f"cannot fit {options.card} to {options.data}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    lines = [f"{key:20s} {value!r}" for key, value in _numbers(card).items()] + report(card, options.data)
    if options.write:
        lines.append(f"written to {write(card)}")
    print("\n".join(lines))  # noqa: T201
    return 0


def _numbers(card: Card) -> dict[str, float]:
    power = {f"power.{key}": value for key, value in asdict(card.power).items()}
    return power | {f"step.{key}": value for key, value in asdict(card.step).items()}


if __name__ == "__main__":
    sys.exit(main())
