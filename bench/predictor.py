"""Step-time and power prediction on the measured L20 table: plain LightGBM, physical prior, hybrid.

    OMP_NUM_THREADS=1 python bench/predictor.py [--json FILE] [--quick]

Splits are fixed: ten folds of a permutation with seed 0, and one clock left out at a time. Coverage of the
90 % bound is measured on points that neither the model nor its bound has seen: left-out folds of the L20
table, left-out rows of virtual profiles (several cards, noises and seeds), and random loads at random
clocks after `kvwatt profile`'s own choice of points. One split of the 150 rows of the L20 table tells
coverage only within 5 % (an exact bound misses 87 to 93 % in more than one split of five): the folds are
drawn with seeds 0 to 9 and all are averaged; the interval is a bootstrap over rows. LightGBM's options and
the bound's folds were not searched on these splits, but the form of the prior and of the interpolation in
the clock was developed with the L20 table in view: for data that the model never met, profile another GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from bars import Bar, show, write
from kvwatt.compiled import compile_model
from kvwatt.profiles import ProfileTable, parse_csv, table_of
from kvwatt.reference import fit_plain, fit_prior
from kvwatt.state import EngineShape
from kvwatt.throughput import StepModel
from kvwatt.training import (
    Origin,
    Predictor,
    bound,
    clock_folds,
    cross_validate,
    fit,
    random_folds,
    scores,
)
from kvwatt_sim.cards import load
from kvwatt_sim.virtual_campaign import errors, run_campaign, unseen_points
from kvwatt_sim.virtual_profile import spread, virtual_profile

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "profiles" / "l20_qwen2.5-7b"
FILES = ("decode_7b_tp1.csv", "prefill_7b_tp1.csv", "static_7b_tp1.csv")
ORIGIN = Origin("NVIDIA L20")
CARDS = ("l20", "a100", "h200")
NOISES = (0.005, 0.01, 0.02)
SPLITS = 10
Floats = npt.NDArray[np.float64]
ROWS = (
    ("fold_ips_r2", "L20 10-fold IPS R2", 0.997, "higher"),
    ("fold_ips_mae", "L20 10-fold IPS MAE, iter/s", 0.40, "lower"),
    ("clock_ips_r2", "L20 clock left out, IPS R2", 0.993, "higher"),
    ("clock_ips_mae", "L20 clock left out, IPS MAE, iter/s", 0.70, "lower"),
    ("inner_decode_mape", "L20 interior clocks, decode MAPE", 0.02, "lower"),
    ("inner_prefill_mape", "L20 interior clocks, prefill MAPE", 0.04, "lower"),
    ("inner_power_batch16_mape", "L20 interior clocks, power MAPE, batch >= 16", 0.06, "lower"),
)


def measured_table() -> ProfileTable:
    """The published L20 tables as one."""
    return table_of(row for name in FILES for row in parse_csv((DATA / name).read_text(), name))


def hybrid(table: ProfileTable) -> StepModel:
    """The model that kvwatt uses, with default options."""
    return fit(table, ORIGIN)


def evaluate(table: ProfileTable, fit_model: Callable[[ProfileTable], Predictor]) -> dict[str, float]:
    """Errors on random folds and on clocks left out."""
    random = cross_validate(table, random_folds(len(table), 10), fit_model)
    clocks = cross_validate(table, clock_folds(table.clock_mhz), fit_model)
    inner = (table.clock_mhz > table.clock_mhz.min()) & (table.clock_mhz < table.clock_mhz.max())
    result = {f"fold_{key}": value for key, value in scores(table, random).items()}
    result |= {f"clock_{key}": value for key, value in scores(table, clocks).items()}
    return result | {f"inner_{key}": value for key, value in scores(table, clocks, inner).items()}


def coverage(table: ProfileTable, seed: int = 0) -> Floats:
    """1 for each row under the bound that `train` would give without its fold (one of ten), else 0."""
    covered = np.zeros(len(table))
    for held_out in random_folds(len(table), 10, seed):
        seen, unseen = table.select(~held_out), table.select(held_out)
        factor = bound(seen, hybrid)
        predicted = hybrid(seen).step_time_s(unseen.clock_mhz, *unseen.load)
        covered[held_out] = unseen.step_time_s <= factor * predicted
    return covered


def measured_coverage(table: ProfileTable, splits: int) -> dict[str, float | list[float]]:
    """Coverage over splits with seeds from 0 on, and the interval that the choice of rows leaves it."""
    by_row = np.array([coverage(table, seed) for seed in range(splits)])
    rows = np.random.default_rng(0).integers(0, len(table), (2000, len(table)))
    low, high = np.quantile(by_row.mean(axis=0)[rows].mean(axis=1), (0.025, 0.975))
    each = [float(share) for share in by_row.mean(axis=1)]
    return {"mean": float(by_row.mean()), "interval_95": [float(low), float(high)], "by_split": each}


def virtual_coverage(seeds: int) -> dict[str, float]:
    """The same on virtual profiles thinned to the size of the L20 table, by card."""
    found: dict[str, list[float]] = {name: [] for name in CARDS}
    for name in CARDS:
        card = load(name)
        for noise in NOISES:
            for seed in range(seeds):
                rows = virtual_profile(card, seed, noise, clocks=spread(card.supported_mhz, 6))
                table = table_of(rows)
                kept = np.zeros(len(table), dtype=bool)
                kept[np.random.default_rng(seed).permutation(len(table))[:150]] = True
                found[name].append(float(coverage(table.select(kept), seed).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def profiling(seeds: int) -> list[dict[str, float | str]]:
    """`kvwatt profile` in virtual time: server time used, and error at loads and clocks never measured."""
    results = []
    for name in CARDS:
        card = load(name)
        for seed in range(seeds):
            campaign = run_campaign(card, seed)
            model = hybrid(table_of(campaign.rows))
            left = {k: errors(model, card, p)[0] for k, p in unseen_points(card, 1000 + seed, 300).items()}
            results.append({"card": name, "server_s": campaign.seconds, "rows": len(campaign.rows)} | left)
    return results


def speed(model: StepModel) -> dict[str, float]:
    """Seconds to compile for 80 clocks, and microseconds per lookup of 16 loads at all of them."""
    clocks = tuple(range(915, 915 + 80 * 15, 15))
    begin = time.perf_counter()
    compiled = compile_model(model, clocks, EngineShape(block_size=16, num_blocks=8000))
    compile_s = time.perf_counter() - begin
    batch, kv, prefill = np.linspace(1, 200, 16), np.linspace(1e3, 1e5, 16), np.linspace(0, 2000, 16)
    laps = []
    for _ in range(500):
        begin = time.perf_counter()
        compiled.step_time_s(batch, kv, prefill)
        laps.append(time.perf_counter() - begin)
    return {"compile_s": compile_s, "lookup_us_p50": 1e6 * float(np.median(laps))}


def measured_bars(splits: int) -> tuple[list[Bar], dict[str, object]]:
    """Bars on the L20 table, and all three models' errors side by side."""
    table = measured_table()
    models: dict[str, Callable[[ProfileTable], Predictor]] = {
        "plain LightGBM": fit_plain,
        "prior alone": fit_prior,
        "hybrid": hybrid,
    }
    results = {name: evaluate(table, fit_model) for name, fit_model in models.items()}
    _print(results, len(table))
    bars = [Bar(label, results["hybrid"][key], limit, better) for key, label, limit, better in ROWS]
    covered = measured_coverage(table, splits)
    Console().print(f"L20, {splits} splits into ten folds: {covered}")
    bars.append(_coverage_bar("L20 10-fold", float(np.mean(covered["by_split"]))))
    return bars, {"models": results, "l20_coverage": covered, "speed": speed(hybrid(table))}


def virtual_bars(seeds: int) -> tuple[list[Bar], dict[str, object]]:
    """Bars in simulation: coverage, and what `kvwatt profile` leaves unexplained."""
    covered, profiled = virtual_coverage(seeds), profiling(min(seeds, 2))
    bars = [_coverage_bar(f"virtual {name}", value) for name, value in covered.items()]
    for name in CARDS:
        mine = [result for result in profiled if result["card"] == name]
        longest_s = max(float(result["server_s"]) for result in mine)
        bars.append(Bar(f"virtual {name}, profiling, server seconds at most", longest_s, 600.0, "lower"))
        for kind in ("decode", "prefill", "mixed"):
            worst = max(float(result[kind]) for result in mine)
            bars.append(Bar(f"virtual {name}, profiled, {kind} MAPE unseen, worst run", worst, 0.03, "lower"))
    return bars, {"virtual_coverage": covered, "profiling": profiled}


def _coverage_bar(name: str, value: float) -> Bar:
    Console().print(f"{name}: the 90 % bound covers {100 * value:.1f} % of unseen points")
    return Bar(f"{name}, |coverage of the 90 % bound - 0.90|", abs(value - 0.9), 0.03, "lower")


def main() -> int:
    """Print the bars; without the L20 data only those of the simulation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="1 seed per card instead of 4, 2 splits for coverage instead of 10",
    )
    arguments = parser.parse_args()
    bars: list[Bar] = []
    more: dict[str, object] = {}
    if DATA.is_dir():
        bars, more = measured_bars(2 if arguments.quick else SPLITS)
    else:
        print(f"no data at {DATA}: the L20 table is left out", file=sys.stderr)
    simulated, found = virtual_bars(1 if arguments.quick else 4)
    bars += simulated
    show(bars, "Step time and power")
    write(arguments.json, bars, **more, **found)
    return 0


def _print(results: dict[str, dict[str, float]], rows: int) -> None:
    shown = Table(title=f"NVIDIA L20, Qwen2.5-7B, {rows} measured points")
    for column in ("measure", *results, "wanted"):
        shown.add_column(column, justify="left" if column in ("measure", "wanted") else "right")
    for key, label, limit, better in ROWS:
        wanted = f"{'>=' if better == 'higher' else '<='} {limit:g}"
        shown.add_row(label, *(f"{result[key]:.4f}" for result in results.values()), wanted)
    Console().print(shown)


if __name__ == "__main__":
    sys.exit(main())
