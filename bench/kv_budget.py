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
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.table import Table

import kv_fleet
from bars import Bar, show, write
from kvwatt import artifact
from kvwatt.attribution import prices_of
from kvwatt.kv_budget import KvLoad, Reuse, in_flight, kv_budget, reuse_of
from kvwatt.state import EngineShape, Slo, SloTarget
from kvwatt.throughput import StepModel
from kvwatt.traffic import DecayingRate
from kvwatt_sim.cards import Card
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.prefix.conversations import Hashed, Talk, conversations, volatile
from kvwatt_sim.prefix.engine import PrefixEngine
from kvwatt_sim.prefix.serving import PERIOD_S, Policy, Result, serve
from kvwatt_sim.replay.scenario import clocks, plant, shape_for

PLANT, POOL_BLOCKS = "l20", 8001
LOW_PER_S, HIGH_PER_S, CYCLE_S = 0.02, 0.08, 600.0
TALK = Talk(first_tokens=(7000.0, 0.8), answer_tokens=(300.0, 0.6), longest_tokens=32_000)
SLO = Slo(SloTarget(10.0), SloTarget(0.2), SloTarget(90.0))
TUNING_SEED = 100
PARTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # for requests in flight
QUANTILE = 0.99
KV_BAR, STACK_BARS = 14.2, (18.9, 25.3)
MOST_BUSY = 0.75  # of a second, at the clock chosen


@dataclass(frozen=True, slots=True)
class Fixed:
    """So many blocks for requests in flight, so many for prefixes, for ever."""

    in_use: int
    kept: int
    clock: int

    def act(self, now_s: float, engine: PrefixEngine, arrivals: int) -> int:
        engine.admit_blocks, engine.cache.limit = self.in_use, self.kept
        return self.clock


@dataclass(frozen=True, slots=True)
class Lru:
    """vLLM's own."""

    clock: int

    def act(self, now_s: float, engine: PrefixEngine, arrivals: int) -> int:
        return self.clock


@dataclass
class Moving:
    """The budget, asked every second of what was seen so far; `slow`: the clock moves, too."""

    card: Card
    step: StepModel
    reuse: Reuse
    slow: bool
    split: Fixed | None = None  # the pool as it is split once and for all; None: by the budget
    rate: DecayingRate = field(default_factory=lambda: DecayingRate(20.0))
    residence_s: float = 10.0
    context: float = 3000.0
    prompt: float = 3000.0  # tokens, learned as the others are

    def act(self, now_s: float, engine: PrefixEngine, arrivals: int) -> int:
        self.rate.observe(arrivals, PERIOD_S)
        self._learn(engine)
        upper = self.rate.upper_per_s(1.65)
        load = KvLoad(
            self.rate.per_s,
            upper,
            self.prompt,
            220.0,
            self.residence_s,
            self.context,
            TALK.longest_tokens / 2,
        )
        price = _prefill_token_j(self.card)
        top = self.card.boost_mhz
        budget = kv_budget(load, engine.shape, self.reuse, self.step, top, price, SLO.tbt.limit_s)
        if self.split is not None:
            self.split.act(now_s, engine, arrivals)
        else:
            engine.admit_blocks, engine.admit_seqs = budget.in_use_blocks, budget.max_seqs
        return self._clock(load, engine, budget.hit_ratio) if self.slow else top

    def _learn(self, engine: PrefixEngine) -> None:
        """Little's law the other way round, from what is in flight."""
        keep = 0.97
        if engine.running and self.rate.per_s > 0:
            inside = engine.running / self.rate.per_s
            self.residence_s = keep * self.residence_s + (1 - keep) * min(inside, 60.0)
            self.prompt = engine.asked_tokens / max(engine.started, 1)
            held = engine.kv_used_blocks * engine.shape.block_size / engine.running
            self.context = keep * self.context + (1 - keep) * held

    def _clock(self, load: KvLoad, engine: PrefixEngine, hits: float) -> int:
        """Least predicted watts among the clocks that keep TBT and leave room to catch up."""
        if engine.waiting:
            return self.card.boost_mhz
        allowed = np.array(clocks(self.card)[::8], dtype=np.float64)
        batch = np.full(len(allowed), max(in_flight(load), engine.running, 1.0))
        kv, none = batch * load.context_tokens, np.zeros(len(allowed))
        plain_s = self.step.step_time_s(allowed, batch, kv, none)
        chunk = np.full(len(allowed), float(engine.shape.max_num_batched_tokens))
        mixed_s = self.step.step_time_s(allowed, batch, kv, chunk)
        prompts = load.rate_upper_per_s * load.prompt_tokens * (1.0 - hits)
        prefilling = prompts / chunk * np.maximum(mixed_s - plain_s, 0.0)
        tbt = plain_s / np.maximum(1.0 - prefilling, 0.05)
        busy_w = self.step.power_w(allowed, batch, kv, none)
        joules = plain_s * busy_w + prefilling * plain_s * self.step.power_w(allowed, batch, kv, chunk)
        keeps = (tbt <= 0.8 * SLO.tbt.limit_s) & (prefilling <= MOST_BUSY)
        if not keeps.any():
            return self.card.boost_mhz
        return int(allowed[np.argmin(np.where(keeps, joules, np.inf))])


@cache
def _step(card: Card) -> StepModel:
    return artifact.load(cached_model(card))


@cache
def _prefill_token_j(card: Card) -> float:
    return prices_of(_step(card), card.boost_mhz, 16.0, 48_000.0, 2048.0).prefill_token_j


def traffic(seed: int, minutes: float) -> tuple[Hashed, ...]:
    """Requests of one seed."""
    return conversations(volatile(LOW_PER_S, HIGH_PER_S, CYCLE_S), 60.0 * minutes, seed, TALK)


def setting() -> tuple[Card, EngineShape]:
    """The plant and its pool."""
    card = plant(PLANT)
    return card, replace(shape_for(card, "paper"), num_blocks=POOL_BLOCKS)


def fixed_of(part: float, card: Card) -> Fixed:
    """The pool split once and for all."""
    in_use = round(part * (POOL_BLOCKS - 1))
    return Fixed(in_use, POOL_BLOCKS - 1 - in_use, card.boost_mhz)


def tuned(minutes: float) -> tuple[Fixed, Reuse]:
    """The best fixed split and what comes back when, both from the tuning seed."""
    card, shape = setting()
    asked = traffic(TUNING_SEED, minutes)
    reuse = reuse_of([(h.request.arrival_s, _blocks(h, shape.block_size)) for h in asked], shape.block_size)
    for part in PARTS:
        result = serve(card, shape, asked, fixed_of(part, card), 60.0 * minutes + 60.0)
        print(f"  fixed part {part:g}: kept {100 * result.kept(SLO):.1f} %, found {result.hit_ratio:.2f}, "
              f"{result.energy_j / 1e3:.0f} kJ", file=sys.stderr)  # fmt: skip
        if result.kept(SLO) >= QUANTILE:
            return fixed_of(part, card), reuse
    return fixed_of(PARTS[-1], card), reuse


def _blocks(item: Hashed, block_size: int) -> list[int]:
    at = item.hashes(block_size)
    return [at(place) for place in range(item.request.prompt_tokens // block_size)]


def policies(fixed: Fixed, reuse: Reuse) -> dict[str, Policy]:
    """Fresh ones, for one run each."""
    card, _ = setting()
    return {
        "fixed": fixed,
        "lru": Lru(card.boost_mhz),
        "budget": Moving(card, _step(card), reuse, slow=False),
        "fixed, clock": Moving(card, _step(card), reuse, slow=True, split=fixed),
        "whole stack": Moving(card, _step(card), reuse, slow=True),
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


def fleet_tuned() -> tuple[Fixed, Reuse]:
    """The smallest fixed part that keeps the promises on the tuning seed with four members, and the reuse."""
    card, shape = setting()
    asked = conversations(kv_fleet.rate, kv_fleet.CYCLE_S, TUNING_SEED, TALK)
    reuse = reuse_of([(h.request.arrival_s, _blocks(h, shape.block_size)) for h in asked], shape.block_size)
    for part in PARTS:
        fixed = fixed_of(part, card)
        played = kv_fleet.play(card, shape, "asleep", asked, kv_fleet.split(fixed.in_use, fixed.kept))
        print(f"  fleet, fixed part {part:g}: kept {100 * played.result.kept(SLO):.1f} %", file=sys.stderr)
        if played.result.kept(SLO) >= QUANTILE:
            break
    return fixed, reuse


def fleet_run(seed: int, fixed: Fixed, reuse: Reuse) -> dict[str, kv_fleet.Played]:
    """Every policy of the fleet on one seed."""
    card, shape = setting()
    asked = conversations(kv_fleet.rate, kv_fleet.CYCLE_S, seed, TALK)
    moving = Moving(card, _step(card), reuse, slow=True)
    found = {
        "fixed": kv_fleet.play(card, shape, "asleep", asked, kv_fleet.split(fixed.in_use, fixed.kept)),
        "lru": kv_fleet.play(card, shape, "asleep", asked, kv_fleet.all_lru),
    }
    for way in kv_fleet.WAYS:
        held = kv_fleet.holding(card, _step(card), SLO, kv_fleet.away(card, way).asleep_w)
        for name, clock in ((way, None), (f"{way}, clock", moving._clock)):
            pooled = kv_fleet.Pooled(_step(card), reuse, held, TALK.longest_tokens, clock)
            found[name] = kv_fleet.play(card, shape, way, asked, pooled.act)
    return found


def fleet_bars(runs: Sequence[dict[str, kv_fleet.Played]]) -> list[Bar]:
    """Pools that come and go against four that stay."""
    found = []
    for way in kv_fleet.WAYS:
        kept = min(each[way].result.kept(SLO) for each in runs)
        share = fmean(
            100.0 * (1.0 - each[way].result.energy_j / each["fixed"].result.energy_j) for each in runs
        )
        found.append(Bar(f"fleet, pools {way}: energy saved against fixed pools, %",
                         share if kept >= QUANTILE else 0.0, KV_BAR, "higher"))  # fmt: skip
        found.append(Bar(f"fleet, pools {way}: promise kept least, share", kept, QUANTILE, "higher"))
    return found


def _print_fleet(runs: Sequence[dict[str, kv_fleet.Played]], fixed: Fixed) -> dict[str, dict[str, float]]:
    shown = Table(title=f"four L20, rate 1 : 6, fixed: {fixed.in_use} blocks each for requests in flight")
    names = ("kJ", "saved %", "found", "prompt tokens", "busy", "pools held", "wakes", "kept %")
    for column in ("policy", *names):
        shown.add_column(column, justify="left" if column == "policy" else "right")
    rows = {}
    for name in runs[0]:
        played = [each[name] for each in runs]
        results = [p.result for p in played]
        saved_by = [1.0 - each[name].result.energy_j / each["fixed"].result.energy_j for each in runs]
        rows[name] = {
            "energy_j": fmean(r.energy_j for r in results),
            "saved_percent": 100.0 * fmean(saved_by),
            "hit_ratio": fmean(r.hit_ratio for r in results),
            "prefill_tokens": fmean(r.prefill_tokens for r in results),
            "busy": fmean(r.busy_s / r.duration_s / kv_fleet.MEMBERS for r in results),
            "held": fmean(p.held for p in played),
            "wakes": fmean(p.wakes for p in played),
            "kept": min(r.kept(SLO) for r in results),
        }
        r = rows[name]
        shown.add_row(
            name, f"{r['energy_j'] / 1e3:.1f}", f"{r['saved_percent']:.1f}", f"{r['hit_ratio']:.3f}",
            f"{r['prefill_tokens']:.0f}", f"{r['busy']:.2f}", f"{r['held']:.2f}", f"{r['wakes']:.1f}",
            f"{100 * r['kept']:.1f}",
        )  # fmt: skip
    Console().print(shown)
    return rows


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
    fixed, reuse = fleet_tuned()
    runs = [fleet_run(seed, fixed, reuse) for seed in seeds]
    return fleet_bars(runs), _print_fleet(runs, fixed)


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
