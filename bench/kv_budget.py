"""What a KV budget that moves with the rate saves against a fixed pool, on traffic with shared prefixes.

    OMP_NUM_THREADS=1 python bench/kv_budget.py [--quick] [--json FILE] [--seeds 1 2 3 4] [--minutes M]
        [--part single|fleet|all]

The setting, exactly. Plant: simulated L20, Qwen2.5-7B, chunks of 2048 tokens, a KV pool of POOL_BLOCKS
blocks of 16 tokens (a quarter of what the card holds: as with a larger model, or a second server beside it).
Traffic: conversations of 4 turns on average with long prompts (`kvwatt_sim.prefix.conversations`; about
12,000 tokens in and 350 out a request, the size of Mooncake's conversation trace), every turn sending all
that was said before, begun at a rate that is HIGH for a quarter of every ten minutes and LOW for the rest.
Promises: TTFT 10 s, TBT 200 ms, E2E 90 s at 99 % of requests.

    fixed         of the pool a fixed part for requests in flight, the rest for prefixes: the smallest part,
                  in steps of a tenth, that keeps the promises on the tuning seed. Driver default clock
    lru           vLLM's own: no bound on admission, all that is free keeps prefixes. Driver default clock
    budget        `kvwatt.kv_budget` asked once a second. Driver default clock
    fixed, clock  the fixed pool, and the clock of least predicted energy that keeps TBT
    whole stack   the budget with that clock: a stand-in for kvwatt's own policy, which needs the compiled
                  plant

The fleet's part, pools that come and go, is told in kv_fleet.py.

All see the same requests. Energy is that of the GPU from the first arrival to a minute after the last, idle
included. Conversations are open-loop: nobody waits for a slow answer to ask the next question.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.table import Table

import kv_fleet_table
from bars import Bar, show, write
from kv_policies import (
    KV_BAR,
    PARTS,
    POOL_BLOCKS,
    QUANTILE,
    SLO,
    STACK_BARS,
    TUNING_SEED,
    Fixed,
    Lru,
    Moving,
    fixed_of,
    reuse_in,
    setting,
    step_of,
    traffic,
)
from kvwatt.kv_budget import Reuse
from kvwatt_sim.prefix.serving import Policy, Result, serve


def tuned(minutes: float) -> tuple[Fixed, Reuse]:
    """The best fixed split and what comes back when, both from the tuning seed."""
    card, shape = setting()
    asked = traffic(TUNING_SEED, minutes)
    reuse = reuse_in(asked, shape)
    for part in PARTS:
        result = serve(card, shape, asked, fixed_of(part, card), 60.0 * minutes + 60.0)
        print(f"  fixed part {part:g}: kept {100 * result.kept(SLO):.1f} %, found {result.hit_ratio:.2f}, "
              f"{result.energy_j / 1e3:.0f} kJ", file=sys.stderr)  # fmt: skip
        if result.kept(SLO) >= QUANTILE:
            return fixed_of(part, card), reuse
    return fixed_of(PARTS[-1], card), reuse


def policies(fixed: Fixed, reuse: Reuse) -> dict[str, Policy]:
    """Fresh ones, for one run each."""
    card, _ = setting()
    return {
        "fixed": fixed,
        "lru": Lru(card.boost_mhz),
        "budget": Moving(card, step_of(card), reuse, slow=False),
        "fixed, clock": Moving(card, step_of(card), reuse, slow=True, split=fixed),
        "whole stack": Moving(card, step_of(card), reuse, slow=True),
    }


def run(seed: int, minutes: float, fixed: Fixed, reuse: Reuse) -> dict[str, Result]:
    """Every policy on one seed."""
    card, shape = setting()
    asked = traffic(seed, minutes)
    return {
        name: serve(card, shape, asked, policy, 60.0 * minutes + 60.0)
        for name, policy in policies(fixed, reuse).items()
    }


def saved(runs: Sequence[dict[str, Result]], name: str, against: str) -> float:
    """Percent of the other's energy, mean over seeds."""
    return fmean(100.0 * (1.0 - each[name].energy_j / each[against].energy_j) for each in runs)


def bars(runs: Sequence[dict[str, Result]]) -> list[Bar]:
    """The issue's bars; a policy that breaks a promise saves nothing."""
    kept = {name: min(each[name].kept(SLO) for each in runs) for name in runs[0]}

    def counted(name: str, against: str) -> float:
        return saved(runs, name, against) if kept[name] >= QUANTILE else 0.0

    return [
        Bar("budget: energy saved against the fixed pool, %", counted("budget", "fixed"), KV_BAR, "higher"),
        Bar("budget: energy saved against vLLM's LRU, %", counted("budget", "lru"), 0.0, "higher"),
        Bar("budget: promise kept least, share", kept["budget"], QUANTILE, "higher"),
        *(
            Bar(f"whole stack: energy saved against driver default (lru), above {bar} %",
                counted("whole stack", "lru"), bar, "higher")
            for bar in STACK_BARS
        ),
        Bar("whole stack: energy saved against the fixed pool, %", counted("whole stack", "fixed"),
            STACK_BARS[1], "higher"),
        Bar("budget with clock: energy saved against the fixed pool with clock, %",
            counted("whole stack", "fixed, clock"), KV_BAR, "higher"),
        Bar("whole stack: promise kept least, share", kept["whole stack"], QUANTILE, "higher"),
    ]  # fmt: skip


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument("--quick", action="store_true", help="one seed, twenty minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--part", choices=("single", "fleet", "all"), default="all")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.minutes = options.seeds[:1], 20.0
    found: list[Bar] = []
    told: dict[str, object] = {}
    for part, play in (("single", _single), ("fleet", _fleet)):
        if options.part in (part, "all"):
            bars_of, told[part] = play(options.seeds, options.minutes)
            found += bars_of
    show(found, "KV budget")
    write(options.json, found, **told)
    return 0


def _single(seeds: Sequence[int], minutes: float) -> tuple[list[Bar], object]:
    fixed, reuse = tuned(minutes)
    runs = [run(seed, minutes, fixed, reuse) for seed in seeds]
    return bars(runs), _print(runs, fixed)


def _fleet(seeds: Sequence[int], minutes: float) -> tuple[list[Bar], object]:
    fixed, reuse = kv_fleet_table.tuned()
    runs = [kv_fleet_table.run(seed, fixed, reuse) for seed in seeds]
    return kv_fleet_table.bars(runs), kv_fleet_table.table(runs, fixed)


def _print(runs: Sequence[dict[str, Result]], fixed: Fixed) -> dict[str, dict[str, float]]:
    shown = Table(title=f"L20, {POOL_BLOCKS - 1} blocks, fixed: {fixed.in_use} for requests in flight")
    names = ("kJ", "saved %", "found", "prompt tokens", "busy", "preempted", "kept %", "TTFT p99")
    for column in ("policy", *names):
        shown.add_column(column, justify="left" if column == "policy" else "right")
    rows = {}
    for name in runs[0]:
        results = [each[name] for each in runs]
        ttft = np.concatenate([result.latencies()["ttft"] for result in results])
        rows[name] = {
            "energy_j": fmean(result.energy_j for result in results),
            "saved_percent": saved(runs, name, "fixed"),
            "hit_ratio": fmean(result.hit_ratio for result in results),
            "prefill_tokens": fmean(result.prefill_tokens for result in results),
            "busy": fmean(result.busy_s / result.duration_s for result in results),
            "preemptions": fmean(result.preemptions for result in results),
            "kept": min(result.kept(SLO) for result in results),
            "ttft_p99_s": float(np.quantile(ttft, QUANTILE)),
        }
        r = rows[name]
        shown.add_row(
            name, f"{r['energy_j'] / 1e3:.1f}", f"{r['saved_percent']:.1f}", f"{r['hit_ratio']:.3f}",
            f"{r['prefill_tokens']:.0f}", f"{r['busy']:.2f}", f"{r['preemptions']:.0f}",
            f"{100 * r['kept']:.1f}", f"{r['ttft_p99_s']:.2f}",
        )  # fmt: skip
    Console().print(shown)
    return rows


if __name__ == "__main__":
    sys.exit(main())
