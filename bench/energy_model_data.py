"""Counted windows in simulation and their split; every number of the split is here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from kvwatt import artifact
from kvwatt.energy_factors import Windows, windows_of
from kvwatt.lattice import Floats
from kvwatt.throughput import StepModel
from kvwatt_sim.cards import Card
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.metered.counter import Noise
from kvwatt_sim.metered.serving import Serving, metered, split_hours
from kvwatt_sim.replay.scenario import clocks, fitted, plant, shape_for
from kvwatt_sim.traces import TraceRequest, load_azure, mean_rate_per_s, scale_rate, thin

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
PLANTS = ("l20", "a100-tp2", "h200")
# Highest rate with p99 TTFT <= 3 s at the top clock on this trace, requests per second, rounded
# (kvwatt_sim.replay.scenario.capacity): loads are shares of it.
CAPACITY_PER_S = {"l20": 5.0, "a100-tp2": 4.3, "h200": 22.0}
STRETCH_S = 600.0
SEEN_LOADS, UNSEEN_LOADS = (0.1, 0.35, 0.6, 0.85), (0.2, 0.5, 0.75)
SEEN_HOURS, UNSEEN_HOURS = (0, 1, 2), (3, 4)  # stretches of the trace, ten minutes each
SEEN_CAPS, UNSEEN_CAPS = (1.0, 0.7), (1.0, 0.85)  # of the card's own; one of them per stretch, in turn
CLOCKS = 16  # spread evenly over those that may be locked; every other one is seen
UPDATES_S = (0.02, 0.05, 0.1)  # of the counter, in turn by seed


@dataclass(frozen=True, slots=True)
class Counted:
    """Windows, their joules by the counter and in truth, both (n,)."""

    windows: Windows
    counter_j: Floats
    true_j: Floats


@dataclass(frozen=True, slots=True)
class Split:
    """`unseen` by what is new in it: loads, clocks, hours, or all three at once (`all`)."""

    card: Card
    step: StepModel
    seen: Counted
    unseen: dict[str, Counted]


def split(name: str, seed: int, loads: int = 4) -> Split:
    """Everything measured on one plant with one seed; `loads`: of the seen ones, fewer for a quick run."""
    card = plant(name)
    low, high = _clocks(card)
    seen = (SEEN_LOADS[:loads], SEEN_HOURS, SEEN_CAPS)
    new = (UNSEEN_LOADS, UNSEEN_HOURS, UNSEEN_CAPS)
    unseen = {
        "loads": _serve(card, name, low, (new[0], seen[1], seen[2]), seed + 10_000),
        "clocks": _serve(card, name, high, seen, seed + 20_000),
        "hours": _serve(card, name, low, (seen[0], new[1], seen[2]), seed + 30_000),
        "all": _serve(card, name, high, new, seed + 40_000),
    }
    trained = _serve(card, name, low, seen, seed)
    return Split(card, artifact.load(cached_model(card)), trained, unseen)


def _clocks(card: Card) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Clocks to train on, and others to predict: the lowest and the highest are trained on."""
    allowed = clocks(card)
    ranks = np.linspace(0, len(allowed) - 1, CLOCKS + 1).round().astype(int)
    chosen = [allowed[rank] for rank in ranks]
    return tuple(chosen[::2]), tuple(chosen[1::2])


Factors = tuple[Sequence[float], Sequence[int], Sequence[float]]


def _serve(card: Card, name: str, locked: tuple[int, ...], factors: Factors, seed: int) -> Counted:
    shape = shape_for(card, "paper")
    # The sensor is the GPU's own: one gain for all its stretches.
    noise = Noise(update_s=UPDATES_S[seed % 10_000 % len(UPDATES_S)])
    found = []
    for number, serving in enumerate(_stretches(card, name, locked, factors, seed)):
        found += metered(card, shape, serving, seed + number, noise, gpu=seed % 10_000)
    return Counted(
        windows_of(item.row for item in found),
        np.array([item.energy_j for item in found]),
        np.array([item.true_j for item in found]),
    )


def _stretches(
    card: Card, name: str, locked: tuple[int, ...], factors: Factors, seed: int
) -> Iterator[Serving]:
    hours = split_hours(_trace(), STRETCH_S)
    for turn, (load, hour) in enumerate((load, hour) for load in factors[0] for hour in factors[1]):
        rate = load * CAPACITY_PER_S[name]
        yield Serving(
            _at(fitted(card, hours[hour]), rate, seed + turn),
            locked,
            STRETCH_S,
            card.power_cap_w * factors[2][turn % len(factors[2])],
            tells_traffic=turn % 2 == 0,
            hour_of_day=8.0 + 4.0 * hour,
        )


def _at(requests: Sequence[TraceRequest], rate_per_s: float, seed: int) -> tuple[TraceRequest, ...]:
    """The stretch at about this rate, its bursts kept; repeated where it is too slow."""
    own = mean_rate_per_s(requests)
    faster = max(rate_per_s / own / 0.6, 1.0)
    times = -(-int(faster * 10) // 10)
    whole = [r for number in range(times) for r in _later(requests, number * STRETCH_S)]
    sped = scale_rate(whole, faster) if faster > 1.0 else tuple(whole)
    kept = thin(sped, min(rate_per_s / (own * faster), 1.0), seed)
    return tuple(request for request in kept if request.arrival_s < STRETCH_S)


def _later(requests: Sequence[TraceRequest], by_s: float) -> Iterator[TraceRequest]:
    for request in requests:
        yield TraceRequest(request.arrival_s + by_s, request.prompt_tokens, request.output_tokens)


@cache
def _trace() -> tuple[TraceRequest, ...]:
    return load_azure(TRACES / "AzureLLMInferenceTrace_conv_2023.csv")
