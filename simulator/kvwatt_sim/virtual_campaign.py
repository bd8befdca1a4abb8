"""`kvwatt profile` in virtual time: its choice of points on the laws of a card, and the error that is left.

Rows come from the card's laws with log-normal noise; setting up a load costs the prefill of its contexts
at the highest clock, and every measurement what the real one costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from random import Random

import numpy as np

from kvwatt.profiles import ProfileRow
from kvwatt.state import EngineShape
from kvwatt.throughput import StepModel
from kvwatt_sim.cards import Card
from kvwatt_sim.gpu import step_time_s
from kvwatt_sim.virtual_profile import measured_row
from kvwattd.profiler.campaign import Campaign, Task
from kvwattd.profiler.plan import DecodeLoad, IdleLoad, Limits, MixedLoad, PrefillLoad, clock_ladder

LONGEST_CONTEXT = 8192
LOWEST_SHARE = 0.3  # of the highest clock, as `kvwatt profile` does by default
Point = tuple[float, float, float, float]  # clock, decode batch, KV tokens, prefill tokens


@dataclass(frozen=True, slots=True)
class VirtualCampaign:
    """What a campaign measured, and how long the server was used for it."""

    rows: tuple[ProfileRow, ...]
    seconds: float
    loads: int
    good_enough: bool


def run_campaign(
    card: Card, seed: int, noise: float = 0.01, clocks: int = 7, budget_s: float = 600.0
) -> VirtualCampaign:
    """Measure until the campaign stops or the budget is used up."""
    random = Random(seed)
    limits = limits_of(card.engine_shape())
    highest = card.supported_mhz[-1]
    campaign = Campaign(
        limits, clock_ladder(card.supported_mhz, LOWEST_SHARE * highest, highest, clocks), budget_s=budget_s
    )
    spent_s, loads = 0.0, 0
    while (task := campaign.next(budget_s - spent_s)) is not None:
        setup_s = _setup_s(card, task, limits)
        windows = 2 if isinstance(task.load, MixedLoad) else 1
        spent_s += setup_s + windows * len(task.clocks_mhz) * campaign.point_s
        loads += 1
        campaign.add(task, _rows(card, task, random, noise), setup_s)
    return VirtualCampaign(tuple(campaign.rows), spent_s, loads, campaign.good_enough)


def limits_of(shape: EngineShape) -> Limits:
    """An engine of this shape as the profiler sees it."""
    return Limits(shape.kv_capacity_tokens, shape.max_num_seqs, shape.max_num_batched_tokens, LONGEST_CONTEXT)


def _setup_s(card: Card, task: Task, limits: Limits) -> float:
    if not isinstance(task.load, DecodeLoad | MixedLoad):
        return 0.0
    tokens = task.load.batch * task.load.context_tokens
    chunk = limits.max_num_batched_tokens
    return tokens / chunk * step_time_s(card, task.clocks_mhz[0], 0, 0, chunk)


def _rows(card: Card, task: Task, random: Random, noise: float) -> list[ProfileRow]:
    return [
        measured_row(card, clock, load, exp(random.gauss(0, noise)), exp(random.gauss(0, noise)))
        for clock in task.clocks_mhz
        for load in _loads(task)
    ]


def _loads(task: Task) -> list[tuple[str, int, int, int]]:
    load = task.load
    if isinstance(load, IdleLoad):
        return [("idle", 0, 0, 0)]
    if isinstance(load, PrefillLoad):
        return [("prefill", 0, 0, load.prompt_tokens)]
    kv = load.batch * (load.context_tokens + 50)  # grown while it is measured
    decode = ("decode", load.batch, kv, 0)
    return (
        [decode, ("mixed", load.batch, kv, load.prompt_tokens)] if isinstance(load, MixedLoad) else [decode]
    )


def unseen_points(card: Card, seed: int, count: int) -> dict[str, list[Point]]:
    """Random loads of every kind at random supported clocks, log-uniform over what the engine takes."""
    random, limits = Random(seed), limits_of(card.engine_shape())
    clocks = [clock for clock in card.supported_mhz if clock >= LOWEST_SHARE * card.supported_mhz[-1]]
    points: dict[str, list[Point]] = {"decode": [], "prefill": [], "mixed": []}
    while min(len(found) for found in points.values()) < count:
        clock = float(random.choice(clocks))
        batch = _log_uniform(random, 1, limits.max_num_seqs)
        kv = batch * _log_uniform(random, 128, 4096)
        prompt = _log_uniform(random, 64, limits.max_num_batched_tokens - limits.max_num_seqs)
        points["prefill"].append((clock, 0.0, 0.0, prompt))
        if kv + prompt < 0.9 * limits.kv_capacity_tokens:
            points["decode"].append((clock, batch, kv, 0.0))
            points["mixed"].append((clock, batch, kv, prompt))
    return {kind: found[:count] for kind, found in points.items()}


def _log_uniform(random: Random, low: float, high: float) -> float:
    return float(round(exp(random.uniform(log(low), log(high)))))


def errors(model: StepModel, card: Card, points: Sequence[Point]) -> tuple[float, float]:
    """Mean relative error of the step time at the points, and the share of them under the bound."""
    truth = np.array([step_time_s(card, *point) for point in points])
    predicted = model.step_time_s(*np.array(points).T)
    covered = truth <= model.upper_factor * predicted
    return float(np.mean(np.abs(predicted / truth - 1))), float(np.mean(covered))
