"""The setting of bench/kv_budget.py, and who decides on a pool there: fixed, vLLM's own, the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from kvwatt import artifact
from kvwatt.attribution import prices_of
from kvwatt.decaying_rate import DecayingRate
from kvwatt.kv_budget import KvLoad, Reuse, in_flight, kv_budget, reuse_of
from kvwatt.state import EngineShape, Slo, SloTarget
from kvwatt.throughput import StepModel
from kvwatt_sim.cards import Card
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.prefix.conversations import Hashed, Talk, conversations, volatile
from kvwatt_sim.prefix.engine import PrefixEngine
from kvwatt_sim.prefix.serving import PERIOD_S
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
        return self.clock(load, engine, budget.hit_ratio) if self.slow else top

    def _learn(self, engine: PrefixEngine) -> None:
        """Little's law the other way round, from what is in flight."""
        keep = 0.97
        if engine.running and self.rate.per_s > 0:
            inside = engine.running / self.rate.per_s
            self.residence_s = keep * self.residence_s + (1 - keep) * min(inside, 60.0)
            self.prompt = engine.asked_tokens / max(engine.started, 1)
            held = engine.kv_used_blocks * engine.shape.block_size / engine.running
            self.context = keep * self.context + (1 - keep) * held

    def clock(self, load: KvLoad, engine: PrefixEngine, hits: float) -> int:
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
def step_of(card: Card) -> StepModel:
    return artifact.load(cached_model(card))


@cache
def _prefill_token_j(card: Card) -> float:
    return prices_of(step_of(card), card.boost_mhz, 16.0, 48_000.0, 2048.0).prefill_token_j


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


def reuse_in(asked: Sequence[Hashed], shape: EngineShape) -> Reuse:
    """What comes back when, of these requests."""
    return reuse_of([(h.request.arrival_s, _blocks(h, shape.block_size)) for h in asked], shape.block_size)


def _blocks(item: Hashed, block_size: int) -> list[int]:
    at = item.hashes(block_size)
    return [at(place) for place in range(item.request.prompt_tokens // block_size)]
