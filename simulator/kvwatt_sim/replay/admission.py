"""Admission in a simulated engine, step by step, by the code that admits inside vLLM (kvwatt.scheduling).

Before each step in which somebody waits the rule says how many may run in it, as a scheduler class for
vLLM does: those who run, and the longest prefix of the queue that is admitted. Who was preempted waits at
the queue's front and is asked about like anybody else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Protocol

from kvwatt.scheduling.cap_ladder import HORIZON_STEPS, Admission
from kvwatt.scheduling.remaining import LearnedLengths, Remaining, Shares
from kvwatt.scheduling.worth import Seat, holding_pays
from kvwatt.state import EngineShape
from kvwatt_sim.replay.plant import MAX_TOKENS, Sequences

LOOK = 64  # of those who wait; more hardly ever start in one step
SEED = 8  # of the quantiles that lengths are drawn at


class Seated(Protocol):
    """What is read of a plant."""

    @property
    def shape(self) -> EngineShape: ...

    def sequences(self) -> Sequences: ...

    def finished_outputs(self, since: int) -> list[int]:
        """Output tokens of those that finished, in that order, less the first `since` of them."""


@dataclass
class Seats(ABC):
    """For one plant: give it to `VirtualPlant.seat`. Lengths are learned from what finishes there."""

    rule: Remaining = field(default_factory=LearnedLengths)
    asked: int = field(default=0, init=False)  # steps in which somebody waited
    held: int = field(default=0, init=False)  # of these, those in which the first in the queue was held
    _learned: int = field(default=0, init=False)

    def __call__(self, plant: Seated) -> int:
        self._learn(plant)
        inside = plant.sequences()
        admits, admitted = self._admits(plant.shape, inside), 0
        for at in islice(range(len(inside.prompts)), inside.running, inside.running + LOOK):
            if not admits(at):
                break
            admitted += 1
        self.asked += 1
        self.held += admitted == 0
        return inside.running + admitted

    @abstractmethod
    def _admits(self, shape: EngineShape, inside: Sequences) -> Callable[[int], bool]:
        """Whether the one at this place of `inside` may start; asked in order up to the first who may not."""

    def _learn(self, plant: Seated) -> None:
        if isinstance(self.rule, LearnedLengths):
            for tokens in (new := plant.finished_outputs(self._learned)):
                self.rule.finished(tokens)
            self._learned += len(new)


@dataclass
class Reservation(Seats):
    """`horizon`: see `Admission`; None reserves to everybody's end."""

    horizon: int | None = HORIZON_STEPS

    def _admits(self, shape: EngineShape, inside: Sequences) -> Callable[[int], bool]:
        half, run = shape.block_size // 2, inside.running  # blocks are half full at a request's end
        everyone = list(zip(inside.prompts, inside.outputs, strict=True))
        held = [prompt + made + half for prompt, made in everyone[:run]]
        limits = [MAX_TOKENS] * run
        admission = Admission(
            self.rule, shape.kv_capacity_tokens, held, inside.outputs[:run], limits, horizon=self.horizon
        )
        return lambda at: admission.admits(everyone[at][0] + half, everyone[at][1], MAX_TOKENS)


@dataclass
class Worth(Seats):
    """Holds whom it pays to hold, as the class in vLLM does. `horizon`: see `holding_pays`."""

    rule: LearnedLengths = field(default_factory=LearnedLengths)
    horizon: int | None = None
    _shares: Shares = field(default_factory=lambda: Shares(Random(SEED)), init=False)

    def _admits(self, shape: EngineShape, inside: Sequences) -> Callable[[int], bool]:
        blocks, size = shape.num_blocks - 1, shape.block_size  # vLLM keeps one back

        def seat(at: int) -> Seat:
            made = inside.outputs[at]
            left = self.rule.drawn(made, MAX_TOKENS, self._shares.of(inside.places[at]))
            return Seat(inside.prompts[at] + made, left)

        seats = [seat(at) for at in range(inside.running)]

        def admits(at: int) -> bool:
            new = seat(at)
            if holding_pays(seats, new, blocks, size, self.horizon):
                return False
            seats.append(new)
            return True

        return admits
