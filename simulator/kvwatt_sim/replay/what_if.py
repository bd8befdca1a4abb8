"""A recorded day served again on simulated plants, as it was and with something changed.

What is simulated is compared with what is simulated: the recording's own energy and latencies stand beside
it, to show how far the simulated plant is from the real one. Requests keep their arrival times and lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from kvwatt.state import EngineShape, Slo, SloTarget
from kvwatt_sim.cards import Card
from kvwatt_sim.recording import Recorded
from kvwatt_sim.replay.controller import Controller, FixedClock, replay_group
from kvwatt_sim.replay.outcome import Outcome, merged
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.policies import kvwatt
from kvwatt_sim.replay.scenario import Case, Promises, clocks, fitted
from kvwatt_sim.traces import TraceRequest

LIMITS = ("ttft", "tbt", "e2e", "itl")
KEYS = (*LIMITS, "instances", "clock")
SAMPLE_S = 60.0


class ChangeError(ValueError):
    """A change that cannot be made; names key and value and what is accepted."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is different. `instances` 0: as recorded. `clock_mhz`: one clock instead of kvwatt's decisions;
    `default_clock`: the driver's."""

    name: str
    limits_s: dict[str, float] = field(default_factory=dict)
    instances: int = 0
    clock_mhz: int | None = None
    default_clock: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """One row of the answer: what was served at which cost, and how it went over time."""

    change: Change
    promises: Promises
    outcome: Outcome
    times_s: tuple[float, ...]
    power_w: tuple[float, ...]  # mean since the time before, all instances together
    clock_mhz: tuple[float, ...]  # mean of the instances at that time


def parse(text: str) -> Change:
    """`tbt=0.08,instances=3` as a change. Raises ChangeError."""
    change = Change(text)
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in KEYS:
            raise ChangeError(f"{part!r}: {', '.join(f'{name}=' for name in KEYS)} are accepted")
        number = _number(key, value)
        if key in LIMITS:
            change = replace(change, limits_s={**change.limits_s, key: number})
        elif key == "instances":
            change = replace(change, instances=int(number))
        else:
            change = replace(change, clock_mhz=int(number))
    return change


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    whole = key in LIMITS or number == int(min(number, 1e9))
    if not (0.0 < number < inf and whole):
        kind = "a number of seconds above 0" if key in LIMITS else "a whole number from 1"
        raise ChangeError(f"{key} = {value!r}: {kind} is accepted")
    return number


def promises_of(limits_s: dict[str, float]) -> Promises:
    """The promises with these limits in seconds, by metric."""
    targets = {name: SloTarget(limit) for name, limit in limits_s.items()}
    return Promises(Slo(targets.get("ttft"), targets.get("tbt"), targets.get("e2e"), targets.get("itl")))


def serve(card: Card, recorded: Sequence[Recorded], limits_s: dict[str, float], change: Change) -> Told:
    """Replay the recording with `change`; of another number of instances the least loaded gets a request."""
    if change.clock_mhz is not None and change.clock_mhz not in card.supported_mhz:
        low, high = card.supported_mhz[0], card.supported_mhz[-1]
        raise ChangeError(f"clock = {change.clock_mhz}: a clock from {low} to {high} MHz is accepted")
    promises = promises_of({**limits_s, **change.limits_s})
    start_s = min(r.requests[0].arrival_s for r in recorded)
    until_s = max(r.span_s[1] for r in recorded) - start_s
    outcomes, watched = [], []
    for shape, requests, plants in _groups(card, recorded, start_s, change.instances):
        case = Case(card, clocks(card), shape, fitted(card, requests), promises, until_s)
        watches = [Watched(_controller(case, change)) for _ in range(plants)]
        outcomes += replay_group(case.card, case.shape, case.requests, watches, until_s)
        watched += watches
    times = watched[0].times_s[: min(len(watch.times_s) for watch in watched)]
    energy = np.sum([watch.energy_j[: len(times)] for watch in watched], axis=0)
    power = np.diff(energy) / np.maximum(np.diff(times), 1e-9)
    clock = np.mean([watch.clock_mhz[: len(times)] for watch in watched], axis=0)
    return Told(
        change, promises, merged(outcomes), tuple(times[1:]), tuple(power.tolist()), tuple(clock[1:].tolist())
    )


def _controller(case: Case, change: Change) -> Controller:
    if change.default_clock or change.clock_mhz is not None:
        return FixedClock(change.clock_mhz)
    return kvwatt(case)


def _groups(
    card: Card, recorded: Sequence[Recorded], start_s: float, instances: int
) -> list[tuple[EngineShape, tuple[TraceRequest, ...], int]]:
    """Engine, requests and number of plants: each instance by itself as recorded, or one group of all."""
    own = [
        tuple(
            TraceRequest(line.arrival_s - start_s, line.prompt_tokens, line.output_tokens)
            for line in one.requests
        )
        for one in recorded
    ]
    shapes = [_shape(card, one) for one in recorded]
    if instances == 0:
        return [(shape, requests, 1) for shape, requests in zip(shapes, own, strict=True)]
    everyone = sorted((r for requests in own for r in requests), key=lambda r: r.arrival_s)
    return [(shapes[0], tuple(everyone), instances)]


def _shape(card: Card, recorded: Recorded) -> EngineShape:
    run = recorded.run
    seqs = min(run.max_num_seqs, run.max_num_batched_tokens)
    return EngineShape(card.block_size, card.num_blocks, seqs, run.max_num_batched_tokens, card.tp)


class Watched:
    """A controller that also notes energy and clock every SAMPLE_S."""

    def __init__(self, inner: Controller) -> None:
        self._inner = inner
        self._held: int | None = None
        self._next_s = 0.0  # when the inner one is asked again
        self.period_s = min(inner.period_s, SAMPLE_S)
        self.times_s: list[float] = []
        self.energy_j: list[float] = []
        self.clock_mhz: list[float] = []

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        if not self.times_s or now_s >= self.times_s[-1] + SAMPLE_S - 1e-6:
            self.times_s.append(now_s)
            self.energy_j.append(plant.energy_j)
            self.clock_mhz.append(float(plant.clock_mhz))
        if now_s >= self._next_s - 1e-6:
            self._held = self._inner.target(now_s, plant)
            self._next_s = now_s + self._inner.period_s
        return self._held
