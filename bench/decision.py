"""How long one decision takes, from engine state to clock, beside the way of the paper.

    python bench/decision.py [--quick] [--json FILE]

Running requests with their progress known, clocks of the simulated L20, random traffic. The
rival is a throttLL'eM-like decision on the same engine: a plain LightGBM model asked for the projected
batch and KV of every second of the horizon, in a binary search over the same clocks. Times are processor time
of the thread: what else runs on the machine is not in them, but for the caches it empties.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import lightgbm
import numpy as np
from rich.console import Console
from rich.table import Table

from bars import Bar, show, write
from kvwatt.compiled import CompiledModel, compile_model
from kvwatt.length_classes import ClassLengths, FinishedRequest
from kvwatt.policy import Applied, Bounds, PolicyParams, decide
from kvwatt.profiles import ProfileTable, table_of
from kvwatt.projection import project
from kvwatt.state import EngineState, RequestState, Slo, SloTarget
from kvwatt.traffic import PROMPT_LEVELS, SHORT_LEVELS, Traffic
from kvwatt.training import Origin, train
from kvwatt_sim.cards import load
from kvwatt_sim.virtual_profile import virtual_profile

# Running requests, clocks, limits in ms on the 99th percentile and on the mean.
SIZES = ((40, 109, 1.0, 0.2), (128, 80, 1.0, 0.2), (256, 120, 1.0, 0.2))
NOW_S = 100.0
SLO = Slo(SloTarget(3.0), SloTarget(0.2), SloTarget(60.0))
CARD = load("l20")
SHAPE = CARD.engine_shape()
SEED = 11


@cache
def lengths() -> ClassLengths:
    """Learned from 5,000 finished requests: classes by prompt length, as in a running daemon."""
    rng = np.random.default_rng(SEED)
    prompts, outputs = rng.exponential(1150.0, 5000), rng.exponential(210.0, 5000)
    known = ClassLengths()
    known.update([FinishedRequest(1 + int(p), 1 + int(n)) for p, n in zip(prompts, outputs, strict=True)])
    known.refit()
    return known


def situations(count: int, running: int) -> list[tuple[EngineState, Traffic]]:
    """Random engine states and traffic, the same in every run."""
    rng = np.random.default_rng(SEED)
    return [_situation(rng, running) for _ in range(count)]


def _situation(rng: np.random.Generator, running: int) -> tuple[EngineState, Traffic]:
    done = rng.integers(1, 400, running)
    prompts = rng.integers(100, 3000, running)
    requests = tuple(
        RequestState(NOW_S - 0.07 * d - 1.0, int(p), int(p), int(d), 2048, first_token_s=NOW_S - 0.07 * d)
        for p, d in zip(prompts, done, strict=True)
    )
    state = EngineState(NOW_S, running, 0, float((done + prompts).sum()), requests)
    rate = float(rng.uniform(0.2, 3.0))
    traffic = Traffic(
        arrival_per_s=rate,
        recent_per_s=rate,
        arrival_upper_per_s=1.3 * rate,
        dispersion=1.2,
        prompt_mean_tokens=1150.0,
        prompt_sd_tokens=1100.0,
        prompt_quantiles_tokens=4000.0 * PROMPT_LEVELS,
        output_mean_tokens=210.0,
        output_short_tokens=10.0 + 800.0 * SHORT_LEVELS,
        output_high_tokens=650.0,
        unstarted=float(rng.integers(0, 3)),
        oldest_wait_s=float(rng.uniform(0.0, 0.5)),
        burst_tokens=0.0,
        exposure_s=60.0,
        finished=500.0,
        lengths=lengths(),
    )
    return state, traffic


def ours(model: CompiledModel) -> Callable[[EngineState, Traffic], object]:
    """kvwatt's decision."""
    params, applied, bounds = PolicyParams(), Applied(1200, 0.0), Bounds()
    return lambda state, traffic: decide(NOW_S, state, traffic, SHAPE, model, SLO, bounds, params, applied)


def rival(table: ProfileTable, clocks: tuple[int, ...]) -> Callable[[EngineState, Traffic], object]:
    """A plain model in a binary search: lowest clock whose projected steps keep the TBT promise."""
    features = np.column_stack((table.clock_mhz, table.decode_batch, table.kv_tokens, table.prefill_tokens))
    options = {"objective": "regression", "verbosity": -1, "num_threads": 1, "min_child_samples": 3}
    booster = lightgbm.train(options, lightgbm.Dataset(features, 1.0 / table.step_time_s), 100)

    def choose(state: EngineState, traffic: Traffic) -> int:
        p = project(state, traffic, SHAPE, 0.03, 5.0)
        low, high = 0, len(clocks) - 1
        while low < high:
            middle = (low + high) // 2
            rows = np.column_stack(
                (
                    np.full(len(p.steps), clocks[middle]),
                    p.batch_mean,
                    p.kv_mean_tokens,
                    np.zeros(len(p.steps)),
                )
            )
            slow = (1.0 / np.asarray(booster.predict(rows))).max() > 0.2
            low, high = (middle + 1, high) if slow else (low, middle)
        return clocks[low]

    return choose


def laps(
    choose: Callable[[EngineState, Traffic], object], cases: list[tuple[EngineState, Traffic]]
) -> np.ndarray:
    """Seconds of each decision, after a warm-up."""
    for case in cases[:50]:
        choose(*case)
    times = []
    for case in cases:
        begin = time.thread_time()
        choose(*case)
        times.append(time.thread_time() - begin)
    return np.array(times)


def _show(times: dict[str, np.ndarray], title: str) -> None:
    shown = Table(title=f"One decision, {title}")
    for column in ("", "mean ms", "p50 ms", "p99 ms", "max ms"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, seconds in times.items():
        figures = (seconds.mean(), *np.quantile(seconds, (0.5, 0.99)), seconds.max())
        shown.add_row(name, *(f"{1e3 * value:.3f}" for value in figures))
    shown.add_row("throttLL'eM as published", "5", "", "", "35")
    Console().print(shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument("--quick", action="store_true", help="500 decisions instead of 5,000")
    arguments = parser.parse_args()
    table = table_of(virtual_profile(CARD, seed=SEED))
    trained = train(table, Origin(CARD.gpu_name), folds=3, by_clock=False)
    count = 500 if arguments.quick else 5000
    bars, seconds = [], {}
    for running, clocks, limit_ms, mean_ms in SIZES:
        mhz = CARD.supported_mhz[-clocks:]
        cases = situations(count, running)
        times = {
            "kvwatt": laps(ours(compile_model(trained, mhz, SHAPE)), cases),
            "plain model, binary search": laps(rival(table, mhz), cases),
        }
        _show(times, f"{running} running requests, {clocks} clocks ({count} decisions)")
        p99_ms = 1e3 * float(np.quantile(times["kvwatt"], 0.99))
        bars.append(Bar(f"decision p99, {running} running, {clocks} clocks, ms", p99_ms, limit_ms, "lower"))
        mean = 1e3 * float(times["kvwatt"].mean())
        bars.append(Bar(f"decision mean, {running} running, {clocks} clocks, ms", mean, mean_ms, "lower"))
        seconds[f"{running}x{clocks}"] = {k: list(np.quantile(t, (0.5, 0.99))) for k, t in times.items()}
    show(bars, "Bars")
    write(arguments.json, bars, seconds=seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
