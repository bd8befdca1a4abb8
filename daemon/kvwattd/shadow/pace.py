"""How much slower tokens would come at the clock decided on, by the model, and how many would have come."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from kvwatt.compiled import CompiledModel
from kvwatt.state import EngineShape
from kvwatt.traffic import Traffic

MEMORY_S = 900.0  # a request that lasts longer is taken to have begun so long ago
MOST_PROMPT_SHARE = 0.95
LEAST_CHUNK = 64.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Of the model, at driver default and at the clock decided on: seconds per token."""

    default_s: float = 1.0
    would_s: float = 1.0
    first_ratio: float = 1.0  # by how much longer the first token takes

    @property
    def ratio(self) -> float:
        """Tokens that would come for each that did."""
        return min(self.default_s / self.would_s, 1.0)


NO_PACE = Pace()


def pace_of(
    model: CompiledModel,
    shape: EngineShape,
    traffic: Traffic,
    clock_mhz: int | None,
    at_default: tuple[float, float],
    would: tuple[float, float],
) -> Pace:
    """`at_default`, `would`: batch and KV tokens. A clock of None is driver default."""
    top = len(model.clocks_mhz) - 1
    column = top if clock_mhz is None else min(int(np.searchsorted(model.clocks_mhz, clock_mhz)), top)
    chunk = min(max(traffic.prompt_mean_tokens, LEAST_CHUNK), float(shape.max_num_batched_tokens))
    batch = np.repeat(np.clip((at_default[0], would[0]), 1.0, shape.max_num_seqs), 2)
    kv = np.repeat((at_default[1], would[1]), 2)
    steps = model.step_time_s(batch, kv, np.array((0.0, chunk, 0.0, chunk)))
    decode, mixed = steps[[0, 2], [-1, column]], steps[[1, 3], [-1, column]]
    share = traffic.arrival_per_s * traffic.prompt_mean_tokens * np.maximum(mixed - decode, 0.0) / chunk
    token_s = decode / (1.0 - np.minimum(share, MOST_PROMPT_SHARE))
    return Pace(float(token_s[0]), float(token_s[1]), max(float(mixed[1] / mixed[0]), 1.0))


class Steps:
    """Engine steps that would have been made until any moment: linear between the points that were given.

    Before the first point, and after the last, they go on as beside it.
    """

    def __init__(self, at_s: float, per_s: float, first_ratio: float) -> None:
        self._at_s, self._steps = [at_s], [0.0]
        self._per_s, self._first = [per_s], [first_ratio]  # of the stretch that ends at the point

    @property
    def now(self) -> float:
        """At the newest point."""
        return self._steps[-1]

    @property
    def now_s(self) -> float:
        return self._at_s[-1]

    def add(self, at_s: float, steps: float, first_ratio: float) -> None:
        """So many more, until `at_s`, which is after the newest point."""
        self._at_s.append(at_s)
        self._steps.append(self._steps[-1] + steps)
        self._per_s.append(steps / (at_s - self._at_s[-2]))
        self._first.append(first_ratio)
        old = bisect_right(self._at_s, at_s - MEMORY_S)
        if old > len(self._at_s) // 2:
            for column in (self._at_s, self._steps, self._per_s, self._first):
                del column[: old - 1]

    def at(self, at_s: float) -> float:
        place = min(bisect_right(self._at_s, at_s), len(self._at_s) - 1)
        return self._steps[place] + (at_s - self._at_s[place]) * self._per_s[place]

    def when(self, steps: float) -> float:
        """The reverse of `at`; where they stood still, the end of that."""
        place = min(bisect_right(self._steps, steps), len(self._steps) - 1)
        per_s = self._per_s[place]
        return self._at_s[place] + (steps - self._steps[place]) / per_s if per_s > 0 else self._at_s[place]

    def first_ratio(self, at_s: float) -> float:
        """By how much longer a first token took that came then."""
        return self._first[min(bisect_right(self._at_s, at_s), len(self._at_s) - 1)]
