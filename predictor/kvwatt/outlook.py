"""How many requests would miss each promise at each clock: those inside one by one, and those to come.

At clock f a decode step takes d, a prompt token c more, and prompts to come take the share
rho = rate x prompt x c of all time, so tokens come every tau = d / (1 - rho) seconds. A request that has
produced g tokens, has decoded for u seconds, is a seconds old and still waits w seconds for its first
token behind others' prompts, ends K tokens later at w + s + K tau, with s the stall by prompts that wait
behind it. It misses, S being its own survival curve and D, M the limits of E2E and mean time between tokens,

    E2E   if K > (D - a - w - s) / tau
    TBT   if u + s + K tau > M (g - 1 + K)

so the probabilities are S(g + K*) / S(g) and, where it is late already but catches up, one minus that.
The clock can be raised later: what may yet change is taken at its mean, what has happened as it is. And so
the misses of E2E are told once more, divided by the time left: a clock held for a moment costs a request
tokens for that moment only, and what its chance of missing rises by is that share of what it rises by if the
clock is held to the deadline. Who has little time left thus asks for a fast clock now, and not for long.
Whatever a request waits and may lose is linear in the terms of its cohort (age, prompt tokens ahead ...), so
that one product of matrices gives it for all clocks and requests. Arrays are (clocks, requests).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.outlook_behind import NOBODY, behind_pace
from kvwatt.outlook_cohort import AGE, AHEAD, BEHIND, ONE, Cohort
from kvwatt.outlook_speeds import FloatArray, Speeds
from kvwatt.present import RequestLengths
from kvwatt.state import Slo
from kvwatt.traffic import Traffic

TTFT_RAMP = (0.85, 1.15)  # of the limit: from certainly kept to certainly missed
SOON_LEAST_S = 3.0  # a clock is raised for so long at least: a request that has less left presses no more


@dataclass(slots=True, eq=False)  # made at every decision: to freeze it would take a microsecond of that
class Waits:
    """Seconds per token at each of the clocks looked at, (clocks,)."""

    ahead_s: FloatArray  # per prompt token ahead of the first token
    behind_s: FloatArray  # per prompt token behind, while it decodes
    kv_s: FloatArray | None  # per token of KV cache that must become free; None: free for all

    def first_s(self, those: Cohort, who: int) -> FloatArray:
        """Until the first token of one request."""
        prompts_s = self.ahead_s * those.ahead_tokens[who]
        if self.kv_s is None or those.kv_wait_tokens is None:
            return np.asarray(prompts_s)
        return np.asarray(np.maximum(prompts_s, self.kv_s * those.kv_wait_tokens[who]))

    def longer_s(self, those: Cohort) -> FloatArray | None:
        """By how much longer the KV cache takes than prompts ahead, (clocks, requests); None: not at all."""
        if self.kv_s is None or those.kv_wait_tokens is None:
            return None
        cache_s = self.kv_s[:, None] * those.kv_wait_tokens
        return np.maximum(cache_s - self.ahead_s[:, None] * those.ahead_tokens, 0.0)


def waits(those: Cohort, s: Speeds, clocks: npt.NDArray[np.intp], traffic: Traffic, budget: int) -> Waits:
    """`clocks`: columns to look at; `budget`: tokens per step, so that many prompts take many steps."""
    token_s, kv_s = s.token_s.take(clocks), None
    if those.kv_wait_tokens is not None and those.decoding > 0:
        # Each ending frees what a request holds, and each token of the others takes one.
        freed = those.decoding * max(those.kv_each_tokens / max(traffic.output_mean_tokens, 1.0) - 1.0, 0.1)
        kv_s = s.tbt_s.take(clocks) / freed
    return Waits(token_s + s.decode_s.take(clocks) * (1.0 / budget), token_s, kv_s)


def expected_misses(
    those: Cohort,
    s: Speeds,
    clocks: npt.NDArray[np.intp],
    wait: Waits,
    lengths: RequestLengths,
    slo: Slo,
    margin: float,
    strain: float = 1.0,
) -> FloatArray:
    """Requests expected to miss each promise that is made (in the order of `targets`) at each of `clocks`:
    (promises, clocks), never rising with the clock. Where E2E is promised one row more: its misses again,
    each divided by the seconds left to the deadline.

    `strain`, 0 to 1: how little room the top clock has to make good what a burst takes; without it chance
    does not count."""
    tau, longer_s = s.tbt_s.take(clocks), wait.longer_s(those)
    kept = 1.0 - margin
    behind, ahead = NOBODY, np.zeros((0, len(those.weight)))
    if slo.tbt is not None:
        # Standard deviation of the stalls by prompts to come, over one token.
        scatter_s = wait.behind_s * np.sqrt(tau * (strain * strain * s.swing))
        behind = behind_pace(those, kept * slo.tbt.limit_s, wait.behind_s, tau, scatter_s)
    if slo.e2e is not None:
        ahead = _in_time(those, wait, kept * slo.e2e.limit_s, tau, longer_s)
        pressing = those.weight / np.maximum(ahead[-1] * tau[-1], SOON_LEAST_S)
    alive, ends = lengths.alive_and_some(those.requests, ahead, behind.who, behind.more)
    rows = []
    if slo.ttft is not None:
        rows.append(_late(those, wait, kept * slo.ttft.limit_s, longer_s))
    if slo.tbt is not None:
        rows.append(behind.misses(ends, len(clocks)))
    if slo.e2e is not None:
        rows += [alive @ those.weight, alive @ pressing]  # 1 where nothing is left
    found = np.array(rows).reshape(len(rows), len(clocks))
    return np.maximum.accumulate(found[:, ::-1], axis=1)[:, ::-1]


def _in_time(
    those: Cohort, wait: Waits, limit_s: float, tau: FloatArray, longer_s: FloatArray | None
) -> FloatArray:
    """Tokens that each may still produce before its deadline, (clocks, requests)."""
    per_term = np.empty((4, len(tau)))
    per_term[AGE], per_term[AHEAD], per_term[ONE], per_term[BEHIND] = (
        -1.0,
        -wait.ahead_s,
        limit_s,
        -wait.behind_s,
    )
    per_term /= tau
    tokens = per_term.T @ those.terms[: BEHIND + 1]
    if longer_s is not None:
        tokens -= longer_s / tau[:, None]
    return np.maximum(tokens, 0.0, out=tokens)


def _late(those: Cohort, wait: Waits, limit_s: float, longer_s: FloatArray | None) -> FloatArray:
    """Requests whose first token is expected too late, (clocks,)."""
    low_s, high_s = limit_s * TTFT_RAMP[0], limit_s * TTFT_RAMP[1]
    first = int(those.started.argmin())  # those to come have not started, nor have most behind the first
    per_term = np.empty((3, len(wait.ahead_s)))
    per_term[AGE], per_term[AHEAD], per_term[ONE] = 1.0, wait.ahead_s, -low_s
    per_term *= 1.0 / (high_s - low_s)
    late = per_term.T @ those.terms[: ONE + 1, first:]
    if longer_s is not None:
        late += longer_s[:, first:] * (1.0 / (high_s - low_s))
    np.minimum(np.maximum(late, 0.0, out=late), 1.0, out=late)
    return np.asarray(late @ (those.weight[first:] * ~those.started[first:]))
