"""Admission in a simulated engine, step by step, by the code that admits inside vLLM (kvwatt.scheduling).

Before each step in which somebody waits the rule says how many may run in it, as a scheduler class for
vLLM does: those who run, and the longest prefix of the queue that is admitted. Who was preempted waits at
the queue's front and is asked about like anybody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from kvwatt.scheduling.cap_ladder import HORIZON_STEPS, Admission
from kvwatt.scheduling.remaining import LearnedLengths, Remaining
from kvwatt.state import EngineShape
from kvwatt_sim.replay.plant import MAX_TOKENS, Sequences

LOOK = 64  # of those who wait; more hardly ever start in one step


class Seated(Protocol):
    """What is read of a plant."""

    @property
    def shape(self) -> EngineShape: ...

    def sequences(self) -> Sequences: ...

    def finished_outputs(self, since: int) -> list[int]:
        """Output tokens of those that finished, in that order, less the first `since` of them."""


@dataclass
class Reservation:
    """Seats for one plant: give it to `VirtualPlant.seat`. Lengths are learned from what finishes there.

    `horizon`: see `Admission`; None reserves to everybody's end.
    """

    rule: Remaining = field(default_factory=LearnedLengths)
    horizon: int | None = HORIZON_STEPS
    asked: int = field(default=0, init=False)  # steps in which somebody waited
    held: int = field(default=0, init=False)  # of these, those in which the first in the queue was held
    _learned: int = field(default=0, init=False)

    def __call__(self, plant: Seated) -> int:
        self._learn(plant)
        inside, shape = plant.sequences(), plant.shape
        half, run = shape.block_size // 2, inside.running  # blocks are half full at a request's end
        everyone = list(zip(inside.prompts, inside.outputs, strict=True))
        held = [prompt + made + half for prompt, made in everyone[:run]]
        limits = [MAX_TOKENS] * run
        admission = Admission(
            self.rule, shape.kv_capacity_tokens, held, inside.outputs[:run], limits, horizon=self.horizon
        )
        admitted = 0
        for prompt, made in islice(everyone, run, run + LOOK):
            if not admission.admits(prompt + half, made, MAX_TOKENS):
                break
            admitted += 1
        self.asked += 1
        self.held += admitted == 0
        return run + admitted

    def _learn(self, plant: Seated) -> None:
        if isinstance(self.rule, LearnedLengths):
            for tokens in (new := plant.finished_outputs(self._learned)):
                self.rule.finished(tokens)
            self._learned += len(new)
