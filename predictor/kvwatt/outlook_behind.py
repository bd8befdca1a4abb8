"""Who would miss the mean time between tokens, and if it ended when.

With K more tokens a request has gained K x (M - tau) seconds on its limit and lost z sigma sqrt(K) by
prompts to come (see outlook.py), so that with `slack` seconds to spare it is behind while

    slack + K gain - z sigma sqrt(K) < 0,    gain = M - tau

which is between the squares of the roots p -+ sqrt(p^2 - slack / gain), p = z sigma / (2 gain). Where tokens
come more slowly than promised (no gain) chance adds little: it is behind from slack / -gain tokens on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvwatt.outlook_cohort import BEHIND, ONE, Cohort, numbered

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

TINY = 1e-9
# Prompts to come, from their mean: standard deviations above it, each the upper end of its share.
BURST_Z = np.array([0.0, 2.0, 3.3])
BURST_SHARES = np.array([0.8, 0.15, 0.05])
_HALF_Z = 0.5 * BURST_Z[:, None]


@dataclass(slots=True, eq=False)
class Behind:
    """Pairs of a request and a clock at which it would miss the mean time between tokens if it ended between
    two numbers of further tokens."""

    who: IntArray  # (2 x pairs,)
    more: FloatArray  # tokens from which on it is behind, of all pairs; then until when: (2 x pairs,)
    column: IntArray
    weight: FloatArray

    def misses(self, alive: FloatArray, clocks: int) -> FloatArray:
        """Requests expected to miss, (clocks,), where `alive` after `more` with these chances."""
        pairs = len(self.column)
        ending = np.maximum(alive[:pairs] - alive[pairs:], 0.0)
        ending *= self.weight
        return np.asarray(np.bincount(self.column, ending, clocks), dtype=np.float64)


NOBODY = Behind(numbered(0), np.zeros(0), numbered(0), np.zeros(0))


def behind_pace(
    those: Cohort, limit_s: float, stall_s: FloatArray, tbt_s: FloatArray, scatter_s: FloatArray
) -> Behind:
    """`limit_s`: mean time between tokens that is promised. At each clock, rising: seconds that a prompt
    token behind stalls, between tokens, and by which prompts to come scatter over one token."""
    gain_s = limit_s - tbt_s
    slow = int(gain_s.searchsorted(TINY))  # no clock gains less than a lower one
    if slow == 0:
        return _by_chance(those, limit_s, stall_s, gain_s, scatter_s)
    late = _too_slow(those, limit_s, stall_s[:slow], gain_s[:slow])
    if slow == len(gain_s):
        return late
    rest = _by_chance(those, limit_s, stall_s[slow:], gain_s[slow:], scatter_s[slow:])
    rest.column = rest.column + slow
    return _both(late, rest)


def _by_chance(
    those: Cohort, limit_s: float, stall_s: FloatArray, gain_s: FloatArray, scatter_s: FloatArray
) -> Behind:
    """At clocks whose tokens come fast enough on average."""
    each = 1.0 / gain_s
    p = _HALF_Z * (scatter_s * each)
    disc = (_per_term(p, stall_s * each, each, limit_s).T @ those.terms[ONE:]).ravel()
    pair = (disc > 0.0).nonzero()[0]  # few have roots
    line, who = pair // len(those.weight), pair % len(those.weight)
    root, middle = np.sqrt(disc.take(pair)), p.take(line)
    more = np.empty((2, len(pair)))
    np.subtract(middle, root, out=more[0])
    np.add(middle, root, out=more[1])
    np.maximum(more, 0.0, out=more)
    more *= more
    column, share = _of_lines(len(gain_s))
    weight = share.take(line)
    weight *= those.weight.take(who)
    return Behind(np.concatenate((who, who)), more.ravel(), column.take(line), weight)


def _per_term(p: FloatArray, stall: FloatArray, each: FloatArray, limit_s: float) -> FloatArray:
    """What each of the cohort's terms from ONE on adds to p^2 - slack / gain: (terms, levels x clocks). One
    product of matrices costs less than broadcasting them one after the other."""
    added = np.empty((4, *p.shape))
    np.multiply(p, p, out=added[0])
    added[1], added[2], added[3] = stall, each, -limit_s * each
    return added.reshape(4, -1)


@lru_cache(maxsize=64)
def _of_lines(clocks: int) -> tuple[IntArray, FloatArray]:
    """Clock and share of each pair of level and clock."""
    column = np.tile(np.arange(clocks), len(BURST_Z))
    share = np.repeat(BURST_SHARES, clocks)
    column.flags.writeable = share.flags.writeable = False
    return column, share


def _too_slow(those: Cohort, limit_s: float, stall_s: FloatArray, gain_s: FloatArray) -> Behind:
    """At clocks whose tokens come too slowly: everybody is behind from some token on."""
    added = np.empty((3, len(gain_s)))
    added[0], added[1], added[2] = -stall_s, -1.0, limit_s
    slack_s = added.T @ those.terms[BEHIND:]
    begin = np.maximum(slack_s, 0.0) / np.maximum(-gain_s, TINY)[:, None]
    size, count = slack_s.size, slack_s.shape[1]
    column, who = np.divmod(numbered(size), count)
    more = np.concatenate((begin.ravel(), np.full(size, np.inf)))
    return Behind(np.concatenate((who, who)), more, column, those.weight.take(who))


def _both(one: Behind, other: Behind) -> Behind:
    first, second = len(one.column), len(other.column)
    who = np.concatenate((one.who[:first], other.who[:second], one.who[first:], other.who[second:]))
    more = np.concatenate((one.more[:first], other.more[:second], one.more[first:], other.more[second:]))
    column = np.concatenate((one.column, other.column))
    return Behind(who, more, column, np.concatenate((one.weight, other.weight)))
