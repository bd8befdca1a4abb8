"""How much a request will still make: the daemon's survival model while it is fresh, else what finished here.

Both are medians of the remaining length given what was made so far (`kvwatt.scheduling.remaining`). A
caller's hint goes before both, until it is outlived.
"""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

from kvwatt.scheduling.remaining import LearnedLengths, Shares, conditional_left, drawn_left
from kvwattd.vllm_plugin.ageing import hint_tokens
from kvwattd.vllm_plugin.told import Told, lengths_for

SHARE = 0.5
ANEW_TOKENS = 16  # an expectation stands for so many tokens
DRAWN_ANEW_TOKENS = 8
SEED = 8
MOST_KNOWN = 8192  # requests: should vLLM ever not tell of an end, nothing grows


class Measured(Protocol):
    """What is read of a request."""

    request_id: str
    num_tokens: int
    num_output_tokens: int
    max_tokens: int


class Lengths:
    """Feed `finished`; read `left` and `cap`."""

    def __init__(self) -> None:
        self._learned = LearnedLengths(SHARE, fewest=8)
        self._ends: dict[str, tuple[int, int]] = {}  # by request: expected length, and until when it stands
        self._shares, self._known = Shares(Random(SEED)), 0  # noqa: S311 (quantiles, no secret)
        # By request: shares, lengths drawn, and until when they stand.
        self._drawn: dict[str, tuple[tuple[float, ...], list[int], int]] = {}

    def finished(self, request_id: str, output_tokens: int) -> None:
        """One more request is over."""
        self._ends.pop(request_id, None)
        self._drawn.pop(request_id, None)
        self._learned.finished(output_tokens)

    def left(self, request: Measured, told: Told | None) -> int:
        """Tokens that it will still make, at least 1 and at most what its limit leaves."""
        made = request.num_output_tokens
        known = self._ends.get(request.request_id)
        if known is None or made >= known[1]:
            left = self.expected(request, request.num_tokens - made, made, request.max_tokens, told)
            known = (made + left, made + min(ANEW_TOKENS, left))
            self._ends[request.request_id] = known
            _bound(self._ends)
        return known[0] - made

    def drawn(self, request: Measured, told: Told | None) -> list[int]:
        """The same at several quantiles, which stay a request's own; shape (draws,)."""
        made = request.num_output_tokens
        known = self._drawn.get(request.request_id)
        if known is None or made >= known[2]:
            if known is None:
                self._known += 1
            shares = self._shares.of(self._known) if known is None else known[0]
            lefts = self._draw(request, shares, told)
            known = (shares, [made + left for left in lefts], made + DRAWN_ANEW_TOKENS)
            self._drawn[request.request_id] = known
            _bound(self._drawn)
        return [end - made if end > made else 1 for end in known[1]]

    def _draw(self, request: Measured, shares: tuple[float, ...], told: Told | None) -> list[int]:
        made, limit = request.num_output_tokens, request.max_tokens
        hint = hint_tokens(request)
        if hint is not None and hint > made:
            return [max(min(hint, limit) - made, 1)] * len(shares)
        lengths = lengths_for(told, request.num_tokens - made) if told is not None else None
        lefts = drawn_left(lengths, made, shares) if lengths is not None else None
        if lefts is None:
            return self._learned.drawn(made, limit, shares)
        return [max(min(left, limit - made), 1) for left in lefts]

    def expected(self, request: object, prompt: int, made: int, limit: int, told: Told | None) -> int:
        """The same, reckoned anew."""
        hint = hint_tokens(request)
        if hint is not None and hint > made:
            return max(min(hint, limit) - made, 1)
        lengths = lengths_for(told, prompt) if told is not None else None
        guess = conditional_left(lengths, made, SHARE) if lengths is not None else None
        if guess is None:
            return self._learned.left(made, limit)
        return max(min(guess, limit - made), 1)

    def cap(self, told: Told | None) -> int:
        """What a new request with the shortest of prompts is expected to make."""
        return self.expected(None, 0, 0, 1 << 30, told)


def _bound(known: dict[str, Any]) -> None:
    """The one known longest goes; if it still runs it is reckoned anew."""
    if len(known) > MOST_KNOWN:
        del known[next(iter(known))]
