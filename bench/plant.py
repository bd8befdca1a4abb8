"""The simulated engine against real vLLM on the CPU under the same load, and the fit of every hardware card.

    python bench/plant.py [--quick] [--json FILE]

Real vLLM serves a random-weight model on one core. The delays around the engine are measured with requests
that meet an empty server. Then conversations are sent at two rates; the same arrivals, prompts and output
lengths (`ignore_eos`) go through the simulated engine in virtual time. Its step law is fitted to the steps
that the engine took for other requests just before and just after, since a shared machine's speed drifts by
more than the law's error within minutes. Compared are batch and KV blocks over time, and every request's
TTFT, time between tokens and E2E: means, quantiles and the distance of the distributions (Kolmogorov). The
real run is then repeated: what differs between the two real runs is noise of the machine that no plant can
predict.

The bars were written down before anything was measured: means within 10 %, distances at most 0.15.

Needs real vLLM (as tests/real_vllm does: a virtual environment of its own, made on first use, 2.5 GB); where
it cannot be had the bench says so and ends with 77. For the cards' errors, the measured tables.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bars import Bar, show, write
from kvwatt_sim.cards import load
from kvwatt_sim.fit.__main__ import report
from kvwatt_sim.fit.compare import LEVELS, Sides, compare
from kvwatt_sim.fit.measured import FittedLaw, MeasuredStep, fit_measured
from kvwatt_sim.fit.served import Delays, simulate
from plant_real import RealEngine, VllmUnavailableError, real_engine

from load_phases import Phase, requests  # isort: skip  (tests/real_vllm, on the path through plant_real)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CARDS = {"l20": "step time and power", "a100": "power; step times are a roofline", "h200": ""}
MEAN_ERROR, DISTANCE = 0.10, 0.15
RATES_PER_S, FIT_RATES_PER_S = (3.0, 1.5), (1.0, 2.0, 4.0)
FIT_SEED, COMPARED_SEED = 40, 20
ALONE_TOKENS, ALONE = 512, 15


@dataclass(frozen=True)
class Compared:
    """One rate: the law that was fitted around it, and what differs."""

    law: FittedLaw
    sides: dict[str, list[Sides]]


def delays_of(engine: RealEngine) -> Delays:
    """Of a server that is warm."""
    engine.run(requests((Phase(2.0, 5.0),), FIT_SEED - 1), FIT_SEED - 1)
    return engine.delays(ALONE_TOKENS, ALONE, FIT_SEED + 9)


def steps_of(engine: RealEngine, duration_s: float, seed: int) -> list[MeasuredStep]:
    """Steps under load that is not compared."""
    phases = [Phase(rate, duration_s / 3) for rate in FIT_RATES_PER_S]
    return engine.run(requests(phases, seed), seed).measured()


def compared(engine: RealEngine, delays: Delays, rate_per_s: float, duration_s: float) -> Compared:
    """Simulated against real at one rate, and the real run against its repetition."""
    load_ = requests((Phase(rate_per_s, duration_s),), COMPARED_SEED)
    steps = steps_of(engine, duration_s / 2, FIT_SEED)
    first = engine.run(load_, COMPARED_SEED).observed()
    steps += steps_of(engine, duration_s / 2, FIT_SEED + 1)
    again = engine.run(load_, COMPARED_SEED + 1).observed()
    law = fit_measured(steps)
    simulated = simulate(law.plant, engine.shape, load_, delays)
    sides = {
        "simulated": compare(first, simulated, duration_s),
        "real again": compare(first, again, duration_s),
    }
    return Compared(law, sides)


def show_sides(console: Console, title: str, found: Compared) -> None:
    console.print(
        f"Step law of this vLLM: {found.law.steps} steps, error of a single step "
        f"{100 * found.law.mape:.1f} % (mean), {100 * found.law.error_p90:.1f} % (90th percentile)"
    )
    shown = Table(title=title)
    percents = [f"{level:.0%} err %" for level in LEVELS]
    for column in ("", "", "real mean", "mean", "error %", *percents, "distance"):
        shown.add_column(column, justify="right" if column else "left")
    for against, rows in found.sides.items():
        for row in rows:
            errors = (row.mean_error, *row.quantile_errors)
            means = (f"{row.real_mean:.4g}", f"{row.simulated_mean:.4g}")
            shown.add_row(row.name, against, *means, *(f"{100 * e:+.1f}" for e in errors), f"{row.ks:.3f}")
    console.print(shown)


def show_cards(console: Console) -> dict[str, list[str]]:
    """Errors of every card against the tables it is fitted to."""
    found = {}
    for name, fitted_part in CARDS.items():
        if not fitted_part:
            found[name] = ["no measurement over the clock is published: a roofline, nothing is fitted"]
        elif DATA.is_dir():
            found[name] = [f"fitted: {fitted_part}", *report(load(name), DATA)]
        else:
            found[name] = [f"the measured tables are not at {DATA}"]
    for name, lines in found.items():
        console.print(f"Card {name}, mean absolute relative errors:", *lines, sep="\n    ", highlight=False)
    return found


def bars_of(rate_per_s: float, rows: list[Sides]) -> list[Bar]:
    bars = []
    for row in rows:
        at = f"{rate_per_s:g} req/s, {row.name.removesuffix(', s')}"
        bars.append(Bar(f"{at}: |error of the mean|", abs(row.mean_error), MEAN_ERROR, "lower"))
        bars.append(Bar(f"{at}: distance of distributions", row.ks, DISTANCE, "lower"))
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars and tables to this file")
    parser.add_argument("--quick", action="store_true", help="one rate, 50 s instead of 180 s each")
    arguments = parser.parse_args()
    console = Console(width=120)
    cards = show_cards(console)
    duration_s = 50.0 if arguments.quick else 180.0
    tables: dict[str, Compared] = {}
    try:
        with tempfile.TemporaryDirectory() as folder, real_engine(Path(folder)) as engine:
            delays = delays_of(engine)
            console.print(
                f"{1000 * delays.to_engine_s:.1f} ms to the engine, {1000 * delays.to_client_s:.1f} ms back"
            )
            for rate in RATES_PER_S[:1] if arguments.quick else RATES_PER_S:
                tables[f"{rate:g}"] = found = compared(engine, delays, rate, duration_s)
                show_sides(console, f"{rate:g} requests/s for {duration_s:g} s", found)
    except VllmUnavailableError as error:
        print(error, file=sys.stderr)
        return 77
    bars = [bar for rate, found in tables.items() for bar in bars_of(float(rate), found.sides["simulated"])]
    show(bars, "Simulated engine against real vLLM")
    rows = {
        rate: {k: [asdict(row) for row in v] for k, v in found.sides.items()}
        for rate, found in tables.items()
    }
    laws = {rate: {"step_mape": f.law.mape, "step_error_p90": f.law.error_p90} for rate, f in tables.items()}
    write(arguments.json, bars, tables=rows, cards=cards, laws=laws, delays=asdict(delays))
    return 0


if __name__ == "__main__":
    sys.exit(main())
