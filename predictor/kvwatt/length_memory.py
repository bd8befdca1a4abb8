"""What is kept of requests for the length model: those that finished, newest last, and those that run.

The first to finish are the short ones. Whoever still runs is therefore counted as cut off where it is now,
with the weight of a request that finished when learning began: with n requests learned since and a memory of
m, what has finished tells too short lengths by exp(-n / m) times what has come to run since. Those that ran
when learning began stand for as many that run now.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.length_curves import Floats, Ints
from kvwatt.length_tree import Sample
from kvwatt.state import RequestState


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """`aborted`: it would have gone on, as one that max_tokens cut would have."""

    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    hint_tokens: float | None = None
    aborted: bool = False

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.output_tokens < 0:
            raise ValueError(
                f"token counts must be >= 0, got {self.prompt_tokens} in and {self.output_tokens} out"
            )

    @property
    def ended(self) -> bool:
        """It ended by itself: its length is known, not only a lower bound of it."""
        return not self.aborted and (self.max_tokens is None or self.output_tokens < self.max_tokens)


@dataclass(slots=True, eq=False)  # made at every decision: to freeze it would take a microsecond of that
class Requests:
    """Columns of requests, each of length n. `limit` is max_tokens, inf where there is none."""

    prompt: Floats
    produced: Floats
    limit: Floats
    hint: Floats  # NaN where there is none
    index: Ints  # place in the list they come from

    @classmethod
    def of(cls, states: Sequence[RequestState]) -> Requests:
        limits = [math.inf if r.max_tokens is None else r.max_tokens for r in states]
        hints = [math.nan if r.hint_tokens is None else r.hint_tokens for r in states]
        return cls.known([r.prompt_tokens for r in states], [r.output_tokens for r in states], limits, hints)

    @classmethod
    def known(
        cls,
        prompt: npt.ArrayLike,
        produced: npt.ArrayLike,
        limit: npt.ArrayLike = math.inf,
        hint: npt.ArrayLike = math.nan,
    ) -> Requests:
        """From columns, which may be longer than one value or one value for all."""
        columns = [np.asarray(column, dtype=np.float64) for column in (prompt, produced, limit, hint)]
        size = columns[0].shape
        whole = [column if column.shape == size else np.broadcast_to(column, size) for column in columns]
        return cls(whole[0], whole[1], whole[2], whole[3], np.arange(size[0]))

    def select(self, rows: npt.NDArray[np.bool_] | Ints) -> Requests:
        """Those of a mask, or at these places."""
        return Requests(
            self.prompt[rows], self.produced[rows], self.limit[rows], self.hint[rows], self.index[rows]
        )


class Memory:
    """Up to `most` finished requests: prompt, output, max_tokens, ended."""

    def __init__(self, most: int) -> None:
        self._most = max(most, 2)
        self._table = np.zeros((4, 1024))
        self._learned = 0
        self._running = np.zeros((4, 0))
        self._at_first: int | None = None
        self.size = 0

    def extend(self, finished: Sequence[FinishedRequest]) -> None:
        """Add requests in the order of their ends."""
        self._learned += len(finished)
        rows = finished[-self._most :]
        new = np.array(
            [
                [r.prompt_tokens for r in rows],
                [r.output_tokens for r in rows],
                limits(rows),
                [r.ended for r in rows],
            ],
            dtype=np.float64,
        )
        if self.size + len(rows) > self._table.shape[1]:
            kept = self._table[:, max(self.size + len(rows) - self._most, 0) : self.size]
            self.size = kept.shape[1]
            self._table = np.concatenate([kept, np.zeros((4, self.size + len(rows)))], axis=1)
        self._table[:, self.size : self.size + len(rows)] = new
        self.size += len(rows)

    def run(self, running: Requests) -> None:
        """These run now, all that do."""
        if self._at_first is None:
            self._at_first = len(running.prompt)
        begun = running.produced > 0
        columns = (running.prompt, running.produced, running.limit, np.zeros(len(begun)))
        self._running = np.stack(columns)[:, begun]

    def sample(self, memory_requests: float, most: int | None = None) -> Sample:
        """What is held, or the newest `most` of it, forgotten exponentially over `memory_requests`."""
        size = min(most or self.size, self.size)
        weight = np.exp(-np.arange(size)[::-1] / memory_requests)
        table = self._table[:, self.size - size : self.size]
        now = self._running.shape[1]
        came = max(now - (self._at_first or 0), 0)
        share = math.exp(-self._learned / memory_requests) * came / now if came else 0.0
        if share > _LEAST_SHARE:
            table = np.concatenate([self._running, table], axis=1)
            weight = np.concatenate([np.full(now, share), weight])
        prompt, tokens, limit, ended = table
        return Sample(prompt, limit, tokens, ended > 0, weight)


_LEAST_SHARE = 1e-3


def limits(finished: Sequence[FinishedRequest]) -> Floats:
    """max_tokens of each, inf where there is none."""
    return np.array([math.inf if r.max_tokens is None else r.max_tokens for r in finished], dtype=np.float64)
