"""The requests inside one by one, as columns, and some that stand for those of the next seconds.

Prompts are computed in the scheduler's order: each has those before it ahead and those after it behind;
who decodes has all of them behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvwatt.length_classes import Requests
from kvwatt.outlook_coming import (
    ARRIVAL,
    COMING_LEVELS,
    COMING_S,
    FIRST,
    LIMIT,
    PROMPT,
    WEIGHT,
    coming,
)
from kvwatt.state import EngineShape, EngineState, Metric, RequestState
from kvwatt.traffic import Traffic

FloatArray = npt.NDArray[np.float64]

SHRINK_REQUESTS = 4.0  # the KV tokens of a request lean on what lengths say with this weight
MOST_DECODES, LOOKED_AT = 96, 48  # of more than so many that decode, so many are looked at
TURN_S = 0.1
# Rows of a cohort's terms: age, prompt tokens ahead, 1, prompt tokens behind, seconds since the first token
# (0 before it), gaps between the tokens so far.
AGE, AHEAD, ONE, BEHIND, DECODING, GAPS = range(6)


@dataclass(slots=True, eq=False)  # made at every decision: to freeze it would take a microsecond of that
class Cohort:
    """Columns of the requests inside, in the scheduler's order, and of some that stand for those to come."""

    requests: Requests
    weight: FloatArray
    started: npt.NDArray[np.bool_]
    terms: FloatArray  # (6, requests): AGE, AHEAD ... of each, in which what it waits and may lose is linear
    kv_wait_tokens: FloatArray | None  # KV cache to become free before its admission; None: free for all
    decoding: float  # requests that decode
    kv_each_tokens: float
    inside: float  # requests, those to come included

    @property
    def ahead_tokens(self) -> FloatArray:
        """Prompt tokens computed until its first token, its own included."""
        return np.asarray(self.terms[AHEAD])

    @property
    def behind_tokens(self) -> FloatArray:
        """Prompt tokens that will stall it while it decodes."""
        return np.asarray(self.terms[BEHIND])

    def open(self, metric: Metric) -> float:
        """Requests that may still keep or miss a promise."""
        return float(self.weight @ ~self.started) if metric is Metric.TTFT else self.inside


def cohort(
    now_s: float, state: EngineState, traffic: Traffic, shape: EngineShape, reaction_s: float
) -> Cohort:
    """Requests not listed one by one, where there are such, are taken to be like those that are."""
    table, inside = _columns(now_s, state)
    listed = table.shape[1] - len(COMING_LEVELS)
    columns, burst, met = coming(traffic, reaction_s)
    table[:, listed:] = columns
    table[ARRIVAL, listed:] = now_s
    prompt, computed, produced, weight, limit, hint = table[PROMPT:]
    started = table[FIRST] == table[FIRST]  # not NaN
    terms = np.zeros((6, len(prompt)))
    np.fmax(now_s - table[:PROMPT], 0.0, out=terms[AGE::DECODING])  # both ages; 0 of NaN
    terms[ONE] = 1.0
    np.maximum(produced - 1.0, 0.0, out=terms[GAPS])
    queued = (computed < prompt).nonzero()[0]
    length = prompt + produced
    ahead, behind = terms[AHEAD], terms[BEHIND]
    queue, decodes, decoding = 0.0, weight[:listed], inside
    if len(queued):
        queue = _queue(queued, weight * (length - computed), ahead, behind[:listed])
        decodes = np.where(computed < prompt, 0.0, weight)[:listed]
        decoding = float(np.add.reduce(decodes))
    ahead[listed:] = queue + burst
    behind[listed:] = met
    usual = traffic.prompt_mean_tokens + traffic.output_mean_tokens / 2
    held = float(decodes @ length[:listed])
    free_tokens = shape.kv_capacity_tokens - state.kv_used_tokens
    return Cohort(
        requests=Requests(prompt, produced, limit, hint, numbered(len(prompt))),
        weight=weight,
        started=started,
        terms=terms,
        kv_wait_tokens=_kv_wait(computed, queued, ahead, columns[PROMPT], free_tokens, queue),
        decoding=decoding,
        kv_each_tokens=(held + SHRINK_REQUESTS * usual) / (decoding + SHRINK_REQUESTS),
        inside=inside + traffic.arrival_per_s * COMING_S,
    )


def _queue(queued: npt.NDArray[np.intp], tokens: FloatArray, ahead: FloatArray, behind: FloatArray) -> float:
    """Fills in what is ahead and behind; the prompt tokens of the whole queue."""
    through = tokens[queued].cumsum()
    queue = float(through[-1])
    ahead[queued] = through
    behind[:] = queue
    behind[queued] -= through
    return queue


def _told_of(now_s: float, requests: Sequence[RequestState]) -> tuple[Sequence[RequestState], int, float]:
    """Those that are looked at; how many of them, the first ones, stand for all that decode, and each for how
    many.

    All, up to MOST_DECODES. Of more every second, third ... that decodes, in turn, so that a decision costs
    the same whatever the batch; who has prompt left to compute is always looked at."""
    if len(requests) <= MOST_DECODES:
        return requests, 0, 1.0
    prompts = [r for r in requests if r.computed_prompt_tokens < r.prompt_tokens]
    decodes = requests
    if prompts:
        decodes = [r for r in requests if r.computed_prompt_tokens >= r.prompt_tokens]
        if not decodes:  # a batch that has just come
            return prompts, 0, 1.0
    every = -(-len(decodes) // LOOKED_AT)
    some = decodes[round(now_s / TURN_S) % every :: every]
    return [*some, *prompts], len(some), len(decodes) / len(some)


def _columns(now_s: float, state: EngineState) -> tuple[FloatArray, float]:
    """The columns of each request, with room for those to come: (8, requests), None being NaN and no limit
    inf; and how many requests they are in all."""
    requests, sampled, each = _told_of(now_s, state.requests)
    count = len(requests)
    table = np.empty((8, count + len(COMING_LEVELS)))
    table[:, :count] = _told(requests).T
    limit, weight = table[LIMIT, :count], table[WEIGHT, :count]
    np.fmin(limit, np.inf, out=limit)
    if sampled:
        weight[:sampled] *= each
    known, inside = float(np.add.reduce(weight)), float(state.running + state.waiting)
    if not 0.0 < known < inside:
        return table, known
    weight *= inside / known
    return table, inside


def _told(requests: Sequence[RequestState]) -> FloatArray:
    """Rows of a cohort's columns, None being NaN: (requests, 8)."""
    rows: list[float | None] = []
    for r in requests:  # a third faster than attrgetter and chain
        rows += (
            r.arrival_s,
            r.first_token_s,
            r.prompt_tokens,
            r.computed_prompt_tokens,
            r.output_tokens,
            r.weight,
            r.max_tokens,
            r.hint_tokens,
        )
    return np.fromiter(rows, np.float64, len(rows)).reshape(-1, 8)


def _kv_wait(
    computed: FloatArray,
    queued: npt.NDArray[np.intp],
    through: FloatArray,
    prompts: FloatArray,
    free_tokens: float,
    queue: float,
) -> FloatArray | None:
    """KV cache that must become free before each is admitted: those before it come first."""
    if queue + prompts[-1] <= free_tokens:
        return None
    flow = np.diff(through[queued], prepend=0.0)
    asked = np.where(computed[queued] <= 0.0, flow, 0.0)
    wait = np.zeros(len(computed))
    wait[queued] = np.where(asked > 0.0, np.maximum(asked.cumsum() - free_tokens, 0.0), 0.0)
    wait[-len(prompts) :] = np.maximum(float(asked.sum()) + prompts - free_tokens, 0.0)
    return wait


@lru_cache(maxsize=512)
def numbered(count: int) -> npt.NDArray[np.intp]:
    """0, 1, 2 ... as an array that nobody may write."""
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers
