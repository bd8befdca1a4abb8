"""How many tokens a request will still make, from the lengths of those that finished: for admission.

A quantile of the remaining length among those that got as far. The median is enough where many run side by
side: their errors cancel, and what is left over is the engine's own preemption's. Whoever outlives all
that were seen climbs GSA's ladder without its kills: as much again as it has made.
No numpy: this runs inside vLLM.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from typing import Protocol

DRAWS = 8


class Remaining(Protocol):
    """What admission reserves by."""

    def left(self, output_tokens: int, max_tokens: int) -> int:
        """Tokens still to come of a request that has made `output_tokens`: at least 1."""


class Chance(Protocol):
    """Randomness is an argument: what is asked of a `random.Random`."""

    def random(self) -> float:
        """Uniform in [0, 1)."""

    def sample(self, population: Sequence[int], k: int, /) -> list[int]:
        """`k` of them, none twice, in any order."""


def conditional_left(ascending: Sequence[int], made: int, quantile: float) -> int | None:
    """The `quantile` of (length - made) among the lengths above `made`; None where there is none."""
    longer = bisect_right(ascending, made)
    if longer == len(ascending):
        return None
    return ascending[longer + int(quantile * (len(ascending) - longer))] - made


def drawn_left(ascending: Sequence[int], made: int, shares: Sequence[float]) -> list[int] | None:
    """The same at several quantiles at once."""
    longer = bisect_right(ascending, made)
    count = len(ascending) - longer
    return [ascending[longer + int(share * count)] - made for share in shares] if count else None


class Shares:
    """Quantiles to draw the lengths of many requests at, `draws` of each: one in every slice of 1 / draws.

    The slices of a request come in an order of its own, so that in one draw some are short and some long.
    """

    def __init__(self, rng: Chance, draws: int = DRAWS, kinds: int = 97) -> None:
        self._table = [
            tuple((slice_ + rng.random()) / draws for slice_ in rng.sample(range(draws), draws))
            for _ in range(kinds)
        ]

    def of(self, number: int) -> tuple[float, ...]:
        """Of the request that is the `number`th, always the same; shape (draws,)."""
        return self._table[number % len(self._table)]


class LearnedLengths:
    """`memory`: newest finished requests that count; `first_tokens`: before `fewest` of them are known."""

    def __init__(
        self, quantile: float = 0.5, memory: int = 512, first_tokens: int = 256, fewest: int = 16
    ) -> None:
        if not 0.0 <= quantile < 1.0 or min(memory, first_tokens, fewest) < 1:
            raise ValueError(
                "quantile must be at least 0 and below 1, memory, first_tokens and fewest at least 1, "
                f"got {quantile}, {memory}, {first_tokens} and {fewest}"
            )
        self._quantile, self._first, self._fewest, self._memory = quantile, first_tokens, fewest, memory
        self._newest: deque[int] = deque()
        self._ascending: list[int] = []

    def finished(self, output_tokens: int) -> None:
        """One more request is over; of nothing nothing is learned."""
        if output_tokens < 1:
            return
        self._newest.append(output_tokens)
        insort(self._ascending, output_tokens)
        if len(self._newest) > self._memory:
            self._ascending.pop(bisect_right(self._ascending, self._newest.popleft()) - 1)

    def left(self, output_tokens: int, max_tokens: int) -> int:
        """At least 1, and no more than `max_tokens` leaves."""
        known = len(self._ascending) >= self._fewest
        guess = conditional_left(self._ascending, output_tokens, self._quantile) if known else None
        if guess is None:
            guess = self._unseen(output_tokens)
        return max(min(guess, max_tokens - output_tokens), 1)

    def drawn(self, output_tokens: int, max_tokens: int, shares: Sequence[float]) -> list[int]:
        """The same at each of these quantiles."""
        known = len(self._ascending) >= self._fewest
        guesses = drawn_left(self._ascending, output_tokens, shares) if known else None
        if guesses is None:
            guesses = [self._unseen(output_tokens)] * len(shares)
        most = max(max_tokens - output_tokens, 1)
        return [min(guess, most) for guess in guesses]

    def _unseen(self, output_tokens: int) -> int:
        return output_tokens if output_tokens >= self._first else self._first - output_tokens
