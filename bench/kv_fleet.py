"""The fleet's part of bench/kv_budget.py: a KV cache that grows and shrinks by whole pools as the rate moves.

The setting, exactly. Four L20 servers, each with the pool and the traffic of the single server, behind a
router that sends a conversation where its past is. Conversations begin at a rate that follows a sine between
LOW and HIGH (1 : 6, the paper's 5k to 30k QPS) over forty minutes, once up and down. Promises are the same.

    fixed    four pools all the time, each split for good as the single fixed pool is (tuned on the tuning
             seed, here again). Driver default clock
    lru      four pools all the time, each vLLM's own. Driver default clock
    WAY      `kvwatt.kv_pools`, asked every five seconds, says how many hold a pool, `kvwatt.kv_budget` what
             each may use; the others hold none, and lose what they kept. Driver default clock
    WAY, clock     with the clock of least predicted energy on each

A member without a pool is asleep (process and GPU held: an idle GPU at its lowest clock, 61 W; ready after
3 s), parked (stopped, an L20 without a process: 36 W; ready after 60 s) or released (stopped, its GPU off
or given to somebody else: 0 W; ready after 60 s). The paper's fleet moves with QPS and does not say which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvwatt.attribution import prices_of
from kvwatt.decaying_rate import DecayingRate
from kvwatt.kv_budget import KvLoad, Reuse, kv_budget
from kvwatt.kv_pools import Holding, pools_wanted
from kvwatt.state import EngineShape, Slo
from kvwatt.throughput import StepModel
from kvwatt_sim.cards import Card
from kvwatt_sim.day.setting import START_S, STARTING_RATIO, WAKE_S
from kvwatt_sim.gpu import power_w
from kvwatt_sim.prefix.conversations import Hashed
from kvwatt_sim.prefix.engine import PrefixEngine
from kvwatt_sim.prefix.fleet import Act, Fleet, Sleep, fleet_of, serve_fleet
from kvwatt_sim.prefix.serving import PERIOD_S, Result

MEMBERS = 4
WAYS = ("asleep", "parked", "released")
LOW_PER_S, HIGH_PER_S, CYCLE_S = 0.05, 0.30, 2400.0
SHRINK_AFTER_S = 30.0  # fewer pools must have been enough for so long
ASKED_S = 5.0
Z = 1.65  # of the rate that is planned for


def rate(at_s: float) -> float:
    """Conversations begun a second in the whole fleet."""
    middle, swing = (LOW_PER_S + HIGH_PER_S) / 2, (HIGH_PER_S - LOW_PER_S) / 2
    return middle - swing * math.cos(2 * math.pi * at_s / CYCLE_S)


def away(card: Card, way: str) -> Sleep:
    """What a member without a pool costs: one of WAYS."""
    idle_w = card.tp * power_w(card, card.boost_mhz, 0.0, 0.0)
    asleep_w = card.tp * power_w(card, min(card.supported_mhz), 0.0, 0.0)
    watts = {"asleep": asleep_w, "parked": card.tp * card.parked_w, "released": 0.0}[way]
    return Sleep(WAKE_S if way == "asleep" else START_S, STARTING_RATIO * idle_w, watts)


def holding(card: Card, step: StepModel, slo: Slo, asleep_w: float) -> Holding:
    """What a pool costs here, by the step model's prices at driver default."""
    prices = prices_of(step, card.boost_mhz, 16.0, 48_000.0, 2048.0)
    return Holding(
        ready_w=card.tp * power_w(card, card.boost_mhz, 0.0, 0.0),
        asleep_w=asleep_w,
        clock_mhz=card.boost_mhz,
        prefill_token_j=prices.prefill_token_j,
        prefill_token_s=prices.chunk_s / 2048.0,
        ttft_limit_s=slo.ttft.limit_s if slo.ttft else None,
        tbt_limit_s=slo.tbt.limit_s if slo.tbt else None,
    )


@dataclass
class Pooled:
    """Asked every second of what the fleet has seen so far. `clock`: of a member with its load."""

    step: StepModel
    reuse: Reuse
    held: Holding
    longest_tokens: float
    clock: Callable[[KvLoad, PrefixEngine, float], int] | None = None
    rate: DecayingRate = field(default_factory=lambda: DecayingRate(60.0))
    residence_s: float = 15.0
    context: float = 8000.0
    prompt: float = 8000.0
    enough_s: float = 0.0
    kept: int = MEMBERS

    def act(self, fleet: Fleet, now_s: float, arrivals: int) -> None:
        self.rate.observe(arrivals, PERIOD_S)
        self._learn(fleet)
        if now_s % ASKED_S >= PERIOD_S:
            return
        load = self._load(self.rate.per_s, self.rate.upper_per_s(Z))
        pools = pools_wanted(load, fleet.shape, self.reuse, self.step, self.held, MEMBERS)
        fleet.resize(self._damped(pools.count), now_s)
        count = max(len(fleet.ready), 1)
        part = self._load(load.rate_per_s / count, load.rate_upper_per_s / count)
        budget = kv_budget(part, fleet.shape, self.reuse, self.step, self.held.clock_mhz,
                           self.held.prefill_token_j, self.held.tbt_limit_s)  # fmt: skip
        for member in fleet.members:
            engine = member.serving.engine
            engine.admit_blocks, engine.admit_seqs = budget.in_use_blocks, budget.max_seqs
            if self.clock is not None:
                member.serving.clock = self.clock(part, engine, budget.hit_ratio)

    def _damped(self, count: int) -> int:
        """More at once, fewer after a while."""
        self.enough_s = self.enough_s + ASKED_S if count < self.kept else 0.0
        if count > self.kept:
            self.kept = count
        elif self.enough_s >= SHRINK_AFTER_S:
            self.kept, self.enough_s = self.kept - 1, 0.0
        return self.kept

    def _load(self, per_s: float, upper_per_s: float) -> KvLoad:
        return KvLoad(per_s, upper_per_s, self.prompt, 300.0, self.residence_s, self.context,
                      self.longest_tokens / 2)  # fmt: skip

    def _learn(self, fleet: Fleet) -> None:
        """Little's law the other way round, from what is in flight anywhere."""
        engines = [member.serving.engine for member in fleet.members]
        running = sum(engine.running for engine in engines)
        if not running or self.rate.per_s <= 0:
            return
        keep = 0.97
        self.residence_s = keep * self.residence_s + (1 - keep) * min(running / self.rate.per_s, 60.0)
        used = sum(engine.kv_used_blocks for engine in engines) * fleet.shape.block_size
        self.context = keep * self.context + (1 - keep) * used / running
        started, asked = sum(e.started for e in engines), sum(e.asked_tokens for e in engines)
        if started:
            self.prompt = 0.99 * self.prompt + 0.01 * asked / started


def split(in_use: int, kept: int) -> Act:
    """The same fixed split on every member, all the time."""

    def act(fleet: Fleet, now_s: float, arrivals: int) -> None:
        for member in fleet.members:
            member.serving.engine.admit_blocks = in_use
            member.serving.engine.cache.limit = kept

    return act


def all_lru(fleet: Fleet, now_s: float, arrivals: int) -> None:
    """vLLM's own on every member."""


@dataclass(frozen=True, slots=True)
class Played:
    """One run and its count of pools: `held` of what there could be over time, `wakes` of members."""

    result: Result
    held: float
    wakes: int


def play(card: Card, shape: EngineShape, way: str, traffic: Sequence[Hashed], act: Act) -> Played:
    """One policy on one seed."""
    fleet = fleet_of(card, shape, MEMBERS, away(card, way))
    result = serve_fleet(fleet, traffic, act, CYCLE_S + 60.0)
    held = sum(member.held_s for member in fleet.members) / (MEMBERS * result.duration_s)
    return Played(result, held, fleet.wakes)
