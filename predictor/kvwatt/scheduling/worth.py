"""Whether holding one who could start is worth it: what a preemption costs against what waiting costs.

Lengths are unknown, so they are drawn a few times (`remaining.Shares`): in each draw PROJ tells in which
step T the cache overflows if the newcomer starts (never: infinity), and somebody inside leaves after W steps
and makes room. An overflow preempts the last one started: the newcomer, whose prompt is then computed again
while all others wait. Held, it loses the tokens of min(W, T) steps. So

    hold   if   P(overflow) x H   >   E[min(W, T)]

with H, the steps of one request that a preemption is worth (`worth_steps`); an overflow beyond a horizon
(`horizon_steps`) does not count. Where lengths are known this is T < horizon, as long as that is below H.
Derived; no source has it. No numpy: this runs inside vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvwatt.scheduling.proj import first_full, first_over

LEAST_HORIZON, MOST_HORIZON = 32, 256
KEPT_EMPTY = 0.125  # of a request's mean memory
LEAST_STEPS = 16
STEPS_EACH = 5  # per request inside: tuned in replay (docs/scheduling.md)
OWN_SHARE = 0.125  # of what it will still make


class Seat(NamedTuple):
    """One inside, or to come: its tokens, and those still to come in each draw, shape (draws,), all >= 1."""

    tokens: int
    left: Sequence[int]


def worth_steps(inside: int, new: Seat) -> int:
    """H: steps of one request that a preemption of `new` is worth beside so many.

    All of them wait while it is computed again; and who stays long can wait for longer.
    """
    return max(LEAST_STEPS, STEPS_EACH * inside) + int(OWN_SHARE * _median_left(new))


def _median_left(new: Seat) -> int:
    return sorted(new.left)[len(new.left) // 2]


def horizon_steps(new: Seat) -> int:
    """An overflow so many steps off, or later, does not count: the newcomer's start has paid its way.

    Over so many steps about their share in its mean memory of the cache stays empty where lengths are known.
    """
    return min(max(int(KEPT_EMPTY * (new.tokens + _median_left(new) / 2)), LEAST_HORIZON), MOST_HORIZON)


def holding_pays(
    inside: Sequence[Seat], new: Seat, room_blocks: int, block_size: int, horizon: int | None = None
) -> bool:
    """Whether to hold `new`, all of one number of draws. `horizon`: instead of `horizon_steps`.

    An engine that runs nothing holds nobody: waiting would never end.
    """
    if not inside:
        return False
    full = first_full([new.tokens, *(seat.tokens for seat in inside)], block_size, room_blocks)
    if full == 0:
        return True  # vLLM would not start it, either
    horizon = horizon_steps(new) if horizon is None else horizon
    if full >= min(max(new.left), horizon):
        return False  # even if nobody leaves
    overflows, waits = _drawn(inside, new, (room_blocks, block_size), full, horizon)
    return overflows * worth_steps(len(inside), new) > waits


def _drawn(
    inside: Sequence[Seat], new: Seat, cache: tuple[int, int], full: int, horizon: int
) -> tuple[int, int]:
    """In how many draws the cache of so many blocks of a size overflows in time, and the sum of min(W, T)."""
    half = cache[1] // 2  # blocks are half full at a request's end
    held = [seat.tokens + half for seat in inside]
    total, room = sum(held) + new.tokens + half, cache[0] * cache[1]
    overflows = waits = 0
    for own, *others in zip(new.left, *(seat.left for seat in inside), strict=True):
        first, over, end = min(others), full, min(own, horizon)
        if first <= full < end:
            leaving = sorted((left, tokens) for left, tokens in zip(others, held, strict=True) if left < end)
            over = first_over(leaving, total, len(inside) + 1, room, full)
        overflows += over < end
        waits += min(first, over) if over < end else first
    return overflows, waits
