"""Conversations: every turn sends all that was said before, behind a system prompt that many share.

The defaults are assumptions in the size of published statistics, no fit to a trace; the figures that follow
were not checked against their papers. LMSYS-Chat-1M: 2.0 turns a conversation; Mooncake's conversation trace
(FAST 2025): prompts of 12,000 tokens, answers of 343, 40 % of its blocks seen before. Between the two: first
prompts long enough (documents, code) that a few thousand tokens are carried along. Turns are geometric,
lengths and think times lognormal, conversations begin as a Poisson process whose rate the caller gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, log, sqrt
from random import Random

from kvwatt_sim.traces import TraceRequest

_STRIDE = 1 << 24  # blocks of one owner; hashes of different owners never meet


@dataclass(frozen=True, slots=True)
class Hashed:
    """A request with its owners: blocks within the first `shared_tokens` are the application's own."""

    request: TraceRequest
    application: int
    shared_tokens: int
    conversation: int

    def hashes(self, block_size: int) -> Callable[[int], int]:
        """The hash of the n-th block: the same for all who share everything up to its end."""
        common, own = 1 + 2 * self.application, 2 * self.conversation

        def at(place: int) -> int:
            owner = common if (place + 1) * block_size <= self.shared_tokens else own
            return owner * _STRIDE + place

        return at


@dataclass(frozen=True, slots=True)
class Talk:
    """How people talk. Lengths in tokens: median and the logarithm's standard deviation."""

    turns: float = 4.0  # mean, geometric
    applications: int = 8
    system_tokens: int = 768
    first_tokens: tuple[float, float] = (1500.0, 0.8)
    next_tokens: tuple[float, float] = (120.0, 0.9)
    answer_tokens: tuple[float, float] = (180.0, 0.7)
    think_s: tuple[float, float] = (45.0, 0.8)
    answer_s_per_token: float = 0.05  # a reader does not answer before the answer is there
    longest_tokens: int = 16_384
    most_answer_tokens: int = 1024


def conversations(
    rate_per_s: Callable[[float], float], duration_s: float, seed: int, talk: Talk | None = None
) -> tuple[Hashed, ...]:
    """Requests in order of arrival. `rate_per_s`: conversations begun a second, by time, the same within each
    whole second. Raises ValueError for a rate that is none."""
    talk = talk or Talk()
    random = Random(seed)
    found: list[Hashed] = []
    for number, start_s in enumerate(_starts(rate_per_s, duration_s, random)):
        found.extend(_turns(number, start_s, talk, random))
    return tuple(sorted((f for f in found if f.request.arrival_s < duration_s), key=_arrival))


def _arrival(item: Hashed) -> float:
    return item.request.arrival_s


def _starts(rate_per_s: Callable[[float], float], duration_s: float, random: Random) -> Iterator[float]:
    """A Poisson process by thinning."""
    rates = [rate_per_s(float(second)) for second in range(int(duration_s) + 1)]
    highest = max(rates)
    if not 0.0 < highest < inf or min(rates) < 0.0:
        raise ValueError(f"rate_per_s must be finite, >= 0 and somewhere above 0, got up to {highest}")
    at_s = random.expovariate(highest)
    while at_s < duration_s:
        if random.random() * highest < rates[int(at_s)]:
            yield at_s
        at_s += random.expovariate(highest)


def _turns(number: int, start_s: float, talk: Talk, random: Random) -> Iterator[Hashed]:
    application = random.randrange(talk.applications)
    at_s, context = start_s, talk.system_tokens + _draw(talk.first_tokens, random)
    while True:
        answer = min(_draw(talk.answer_tokens, random), talk.most_answer_tokens)
        if context + answer > talk.longest_tokens:
            return
        yield Hashed(TraceRequest(at_s, context, answer), application, talk.system_tokens, number)
        if random.random() < 1.0 / talk.turns:
            return
        at_s += answer * talk.answer_s_per_token + random.lognormvariate(
            log(talk.think_s[0]), talk.think_s[1]
        )
        context += answer + _draw(talk.next_tokens, random)


def _draw(law: tuple[float, float], random: Random) -> int:
    return max(round(random.lognormvariate(log(law[0]), law[1])), 1)


def volatile(
    low_per_s: float, high_per_s: float, period_s: float, burst: float = 0.25
) -> Callable[[float], float]:
    """A rate that is high for `burst` of every period and low for the rest."""

    def rate(at_s: float) -> float:
        return high_per_s if (at_s % period_s) < burst * period_s else low_per_s

    return rate


def dispersion(rate: Callable[[float], float], duration_s: float) -> float:
    """Coefficient of variation of a rate over time."""
    values = [rate(float(second)) for second in range(int(duration_s))]
    mean = sum(values) / len(values)
    return sqrt(sum((value - mean) ** 2 for value in values) / len(values)) / mean
