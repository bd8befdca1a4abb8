"""How many requests would miss each promise at each clock: those inside one by one, and those to come.

At clock f a decode step takes d, a prompt token c more, and prompts to come take the share
rho = rate x prompt x c of all time, so tokens come every tau = d / (1 - rho) seconds. A request that has
produced g tokens, has decoded for u seconds, is a seconds old and still waits w seconds for its first
token behind others' prompts, ends K tokens later at w + s + K tau, with s the stall by prompts that wait
behind it. It misses, S being its own survival curve and D, M the limits of E2E and mean time between tokens,

    E2E   if K > (D - a - w - s) / tau
    TBT   if u + s + K tau > M (g - 1 + K)

so the probabilities are S(g + K*) / S(g) and, where it is late already but catches up, one minus that.
The clock can be raised later: what may yet change is taken at its mean, what has happened as it is.
Arrays are (clocks, requests): numpy is fastest along the longer side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.outlook_cohort import Cohort, numbered
from kvwatt.outlook_speeds import FloatArray, Speeds
from kvwatt.present import RequestLengths
from kvwatt.state import Slo
from kvwatt.traffic import Traffic

TTFT_RAMP = (0.85, 1.15)  # of the limit: from certainly kept to certainly missed
TINY = 1e-9
# Prompts to come, from their mean: standard deviations above it, each the upper end of its share.
BURST_Z = np.array([0.0, 2.0, 3.3])
BURST_WORST = BURST_Z.item(-1)
BURST_SHARES = np.array([0.8, 0.15, 0.05])
BURST_FIRST = np.array([True, False, False])[:, None, None]


@dataclass(slots=True, eq=False)  # made at every decision, as Behind: not frozen for the time that takes
class Waits:
    """Seconds until the first token, and of stalls after it, per clock and request."""

    first_s: FloatArray
    stall_s: FloatArray


def waits(those: Cohort, s: Speeds, clocks: npt.NDArray[np.intp], traffic: Traffic, budget: int) -> Waits:
    """`clocks`: columns to look at; `budget`: tokens per step, so that many prompts take many steps."""
    token_s = s.token_s.take(clocks)
    first_s = (token_s + s.decode_s.take(clocks) / budget)[:, None] * those.ahead_tokens
    if those.kv_wait_tokens is not None and those.decoding > 0:
        # Each ending frees what a request holds, and each token of the others takes one.
        freed = those.decoding * max(those.kv_each_tokens / max(traffic.output_mean_tokens, 1.0) - 1.0, 0.1)
        first_s = np.maximum(first_s, (s.tbt_s.take(clocks) / freed)[:, None] * those.kv_wait_tokens)
    return Waits(first_s, token_s[:, None] * those.behind_tokens)


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
    (promises, clocks), never rising with the clock.

    `strain`, 0 to 1: how little room the top clock has to make good what a burst takes; without it chance
    does not count."""
    tau = s.tbt_s.take(clocks)
    kept = 1.0 - margin
    behind = NOBODY
    if slo.tbt is not None:
        limit_s = kept * slo.tbt.limit_s
        slack_s = np.maximum(limit_s * those.requests.produced - limit_s, 0.0) - those.decoding_s
        behind = behind_pace(those, slack_s, wait.stall_s, limit_s - tau, strain * s.scatter_s(clocks))
    if slo.e2e is not None:
        left_s = (kept * slo.e2e.limit_s - those.age_s) - wait.first_s
        left_s -= wait.stall_s
        ahead = np.maximum(left_s, 0.0, out=left_s)
        ahead /= tau[:, None]
    else:
        ahead = np.zeros((0, len(those.weight)))
    alive, ends = lengths.alive_and_some(those.requests, ahead, behind.who, behind.more)
    rows: list[FloatArray] = []
    if slo.ttft is not None:
        rows.append(_late(those, wait, kept * slo.ttft.limit_s))
    if slo.tbt is not None:
        rows.append(behind.misses(ends, len(clocks)))
    if slo.e2e is not None:
        rows.append(alive @ those.weight)  # 1 where nothing is left
    found = np.array(rows).reshape(len(rows), len(clocks))
    return np.maximum.accumulate(found[:, ::-1], axis=1)[:, ::-1]


def _late(those: Cohort, wait: Waits, limit_s: float) -> FloatArray:
    """Requests whose first token is expected too late, (clocks,)."""
    low_s, high_s = limit_s * TTFT_RAMP[0], limit_s * TTFT_RAMP[1]
    first = int(those.started.argmin())  # those to come have not started, nor have most behind the first
    beyond_s = those.age_s[first:] - low_s
    if np.maximum.reduce(beyond_s + wait.first_s[0, first:]) <= 0.0:
        return np.zeros(len(wait.first_s))  # nobody at the lowest clock
    late = wait.first_s[:, first:] + beyond_s
    late *= 1.0 / (high_s - low_s)
    np.minimum(np.maximum(late, 0.0, out=late), 1.0, out=late)
    return np.asarray(late @ (those.weight[first:] * ~those.started[first:]))


@dataclass(slots=True, eq=False)
class Behind:
    """Pairs of a request and a clock at which it would miss the mean time between tokens if it ended between
    two numbers of further tokens."""

    who: npt.NDArray[np.intp]  # (2 x pairs,)
    more: FloatArray  # tokens from which on it is behind, of all pairs; then until when: (2 x pairs,)
    column: npt.NDArray[np.intp]
    weight: FloatArray

    def misses(self, alive: FloatArray, clocks: int) -> FloatArray:
        """Requests expected to miss, (clocks,), where `alive` after `more` with these chances."""
        pairs = len(self.column)
        ending = np.maximum(alive[:pairs] - alive[pairs:], 0.0)
        ending *= self.weight
        return np.asarray(np.bincount(self.column, ending, clocks), dtype=np.float64)


_NONE = np.zeros(0, dtype=np.intp)
NOBODY = Behind(_NONE, np.zeros(0), _NONE, np.zeros(0))


def behind_pace(
    those: Cohort, slack_s: FloatArray, stall_s: FloatArray, gain_s: FloatArray, scatter_s: FloatArray
) -> Behind:
    """Who would miss the mean time between tokens if it ended when.

    `slack_s` (requests,) less `stall_s` (clocks, requests): what each may still lose; it gains `gain_s` with
    every token and loses z `scatter_s` sqrt(tokens) by prompts to come. It is behind between the roots of a
    quadratic in the square root of the tokens. Few requests and clocks have such roots.
    """
    # Who has no such roots at the lowest clock has none at any.
    b_lowest, gain_lowest = BURST_WORST * float(scatter_s[0]), float(gain_s[0])
    if gain_lowest > TINY:
        most_s = b_lowest * b_lowest / (4.0 * gain_lowest)
        near = (slack_s - stall_s[0] < most_s).nonzero()[0]
        if not len(near):
            return NOBODY
        slack = slack_s.take(near) - stall_s.take(near, axis=1)
    else:
        near, slack = numbered(len(slack_s)), slack_s - stall_s
    b = BURST_Z[:, None] * scatter_s
    disc = (b * b)[:, :, None] - (4.0 * gain_s)[:, None] * slack
    # Where tokens come too slowly on average, chance adds little: level 0 stands for all.
    found = disc > 0.0
    if gain_lowest <= TINY:
        found = np.where(gain_s[:, None] > 0.0, found, BURST_FIRST)
        np.maximum(disc, TINY * TINY, out=disc)
    level, column, row = found.nonzero()
    swing, gain, who = np.sqrt(disc[found]), gain_s.take(column), near.take(row)
    swing += BURST_Z.take(level) * scatter_s.take(column)
    more = np.empty((2, len(row)))
    np.divide(np.maximum(slack[column, row], 0.0), 0.5 * swing, out=more[0])
    np.divide(0.5 * swing, np.maximum(gain, TINY), out=more[1])
    np.minimum(more[1], 1e3, out=more[1])
    more *= more
    share = BURST_SHARES.take(level)
    if gain_lowest <= TINY:
        slow = gain <= 0.0
        more[1, slow], share[slow] = np.inf, 1.0
    share *= those.weight.take(who)
    return Behind(np.concatenate((who, who)), more.ravel(), column, share)
