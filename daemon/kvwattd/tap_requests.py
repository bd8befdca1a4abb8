"""The requests inside an engine as far as the tap's records tell: a book kept by `TapProgress`. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from kvwatt.state import RequestState

SAME_S = 5e-6  # arrivals told at the first token and at the end are equal but for rounding (of 2e-7 s)
CERTAIN = 0.999
TINY = 1e-9
LONGEST, ROUNDS = 30.0, 40  # of the search for a factor, in its log


@dataclass(slots=True)
class Group:
    """Requests that started in one step: only the sum of their prompts is told, until they finish."""

    prompt_tokens: float
    size: int

    @property
    def each(self) -> float:
        return self.prompt_tokens / max(self.size, 1)

    def leave(self, prompt_tokens: int) -> None:
        self.prompt_tokens = max(self.prompt_tokens - prompt_tokens, 0.0)
        self.size -= 1


@dataclass(slots=True, eq=False)
class Known:
    """A request that has its first token. Without `arrival_wall_s` it is a guess: its start was not told."""

    arrival_wall_s: float | None  # on the server's wall clock: what its end is recognised by
    arrival_s: float
    first_s: float
    group: Group | None
    base: float  # tokens; while it decodes, less those that the roll counts for all
    gone: float = 0.0  # how likely it has left untold
    counted: bool = True  # all its tokens were; else it was there before the first record


class Roll:
    """Who decodes, who was preempted, who has no first token yet; each in the order of admission.

    All who decode advance together, so that a step costs the same whatever their number.
    """

    def __init__(self) -> None:
        self.active: list[Known] = []
        self.parked: list[Known] = []  # preempted
        self.unstarted: deque[float] = deque()  # arrivals, as late as is known
        self._count = 0.0  # tokens that everyone active got
        self._gone = 0.0  # sum of `gone`

    @property
    def decoding(self) -> float:
        """How many decode: those known less those who left untold."""
        return len(self.active) - self._gone

    @property
    def unsure(self) -> float:
        """Requests that are guessed, and half of those whose leaving is spread over others."""
        guessed = sum(known.arrival_wall_s is None for known in (*self.active, *self.parked))
        return guessed + self._gone / 2

    def tokens(self, known: Known) -> float:
        """Output tokens so far."""
        return known.base if known in self.parked else known.base + self._count

    def advance(self, tokens: float) -> None:
        """Everyone who decodes gets so many."""
        self._count += tokens

    def start(self, known: Known) -> None:
        """A first token; `known.base` is all that it has."""
        known.base -= self._count
        self.active.append(known)
        if self.unstarted:
            self.unstarted.popleft()
        # First come, first served: who still waits came later.
        while self.unstarted and self.unstarted[0] < known.arrival_s:
            self.unstarted.popleft()
            self.unstarted.append(known.arrival_s)

    def guess(self, now_s: float, counted: bool) -> None:
        """Somebody decodes whose start was not told: a moment ago, or at any time before the first record."""
        arrival_s = self.unstarted.popleft() if self.unstarted else now_s
        self.active.append(Known(None, arrival_s, now_s, None, 1.0 - self._count, counted=counted))

    def find(self, arrival_wall_s: float | None, output_tokens: int) -> Known | None:
        """Who finished: the one of that arrival, or else the likeliest of the guesses."""
        everyone = (*self.active, *self.parked)
        same = [
            k
            for k in everyone
            if k.arrival_wall_s is not None
            and arrival_wall_s is not None
            and abs(k.arrival_wall_s - arrival_wall_s) <= SAME_S
        ]
        candidates = same or [k for k in everyone if k.arrival_wall_s is None]
        return min(candidates, key=lambda k: abs(self.tokens(k) - output_tokens), default=None)

    def leave(self, known: Known, prompt_tokens: int) -> None:
        """It finished; what was suspected of it falls upon the others."""
        if known.group is not None:
            known.group.leave(prompt_tokens)
        if known in self.parked:
            self.parked.remove(known)
            return
        self.active.remove(known)
        if known.gone:
            self._suspect(self._gone)

    def vanish(self, count: float) -> None:
        """So many of those who decode left untold: each as likely as it was still there."""
        there = self.decoding
        if count <= 0 or there <= 0:
            return
        share = min(count / there, 1.0)
        for known in self.active:
            known.gone += (1.0 - known.gone) * share
        self._suspect(self._gone + share * there)

    def reappear(self, count: float) -> None:
        """So many who were taken for gone are still there."""
        self._suspect(max(self._gone - count, 0.0))

    def _suspect(self, total: float) -> None:
        """Scale the odds of all suspects alike, to this sum; who is certainly gone is struck off."""
        suspects = [known for known in self.active if known.gone > 0.0]
        factor = _scale([known.gone / max(1.0 - known.gone, TINY) for known in suspects], total)
        for known in suspects:
            odds = factor * known.gone / max(1.0 - known.gone, TINY)
            known.gone = odds / (1.0 + odds)
        self.active = [known for known in self.active if known.gone < CERTAIN]
        self._gone = sum(known.gone for known in self.active)

    def park(self, count: int) -> None:
        """The last ones admitted are preempted."""
        cut = max(len(self.active) - count, 0)
        out, self.active = self.active[cut:], self.active[:cut]
        for known in out:
            known.base += self._count
            self._gone -= known.gone
            known.gone = 0.0
        self._gone = max(self._gone, 0.0)
        self.parked = [*out, *self.parked]

    def resume(self, count: int) -> None:
        """The first ones preempted decode again."""
        back, self.parked = self.parked[:count], self.parked[count:]
        for known in back:
            known.base -= self._count
        self.active += back

    def forget_parked(self, count: int) -> None:
        """So many of the preempted were aborted: the last ones, for want of knowledge."""
        self.parked = self.parked[: len(self.parked) - count]

    def expect(self, unstarted: int, arrival_s: float) -> None:
        """So many have no first token; whoever is new came at `arrival_s` at the earliest."""
        while len(self.unstarted) > unstarted:
            self.unstarted.pop()
        while len(self.unstarted) < unstarted:
            self.unstarted.append(arrival_s)

    def states(self, kv_tokens: float, prompt_tokens: float, in_batch: int) -> tuple[RequestState, ...]:
        """Everyone inside. The KV cache not held by known requests is that of guesses and of prompts."""
        known = [self._state(k, decodes=True) for k in self.active if k.group is not None]
        guesses = [k for k in self.active if k.group is None]
        held = sum(s.weight * (s.prompt_tokens + s.output_tokens) for s in known)
        each = max(kv_tokens - held, 0.0) / max(len(guesses) + in_batch, 1)
        guessed = [self._guessed(k, each, prompt_tokens) for k in guesses]
        parked = [self._state(k, decodes=False) for k in self.parked]
        prompt = max(round(prompt_tokens), 1)
        waiting = [
            RequestState(at_s, prompt, int(min(max(each, 1.0), prompt - 1.0)) if i < in_batch else 0, 0)
            for i, at_s in enumerate(self.unstarted)
        ]
        return (*known, *guessed, *waiting[:in_batch], *parked, *waiting[in_batch:])

    def _state(self, known: Known, decodes: bool) -> RequestState:
        prompt = max(round(known.group.each), 1) if known.group is not None else 1
        return RequestState(
            arrival_s=known.arrival_s,
            prompt_tokens=prompt,
            computed_prompt_tokens=prompt if decodes else 0,
            output_tokens=max(round(known.base + (self._count if decodes else 0.0)), 1),
            weight=1.0 - known.gone,
            first_token_s=known.first_s,
        )

    def _guessed(self, known: Known, held: float, prompt_tokens: float) -> RequestState:
        prompt = max(round(min(prompt_tokens, held)), 1)
        told = known.base + self._count
        output = max(round(told if known.counted else max(held - prompt, told)), 1)
        return RequestState(
            known.arrival_s, prompt, prompt, output, weight=1.0 - known.gone, first_token_s=known.first_s
        )


def _scale(odds: list[float], total: float) -> float:
    """The factor on these odds at which their probabilities add up to `total`.

    Newton's steps for the factor's log, halving the bracket where one leaves it.
    """
    low, high, at = -LONGEST, LONGEST, 0.0
    for _ in range(ROUNDS):
        factor = math.exp(at)
        shares = [factor * o / (1.0 + factor * o) for o in odds]
        beyond = sum(shares) - total
        if abs(beyond) <= TINY:
            break
        low, high = (at, high) if beyond < 0 else (low, at)
        slope = sum(share * (1.0 - share) for share in shares)
        at = at - beyond / slope if slope > TINY else low
        if not low < at < high:
            at = (low + high) / 2
    return math.exp(at)
