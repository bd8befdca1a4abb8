"""Whom to start first where callers say how long their answers will be: smallest area first, with ageing.

The area is KV memory x time, A = s o + o (o + 1) / 2 for a prompt of s and o tokens to come (SVF, arXiv
2606.22327). Every `age_s` of waiting halves it, and whoever waited OVERDUE times that goes first, so that
nobody starves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import nsmallest
from itertools import islice
from typing import Protocol, TypeVar

HINT = "output_tokens"  # in vllm_xargs
OVERDUE = 8.0
LOOK = 64


class Waiting(Protocol):
    """What is read of a request."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_output_tokens(self) -> int: ...

    @property
    def num_preemptions(self) -> int: ...

    @property
    def arrival_time(self) -> float: ...


R = TypeVar("R", bound=Waiting)


def hint_tokens(request: object) -> int | None:
    """What the caller said, if it is a sensible number."""
    extra = getattr(getattr(request, "sampling_params", None), "extra_args", None)
    value = extra.get(HINT) if isinstance(extra, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 1 << 30:
        return None
    return int(value)


def score(request: Waiting, left_tokens: int, now_s: float, age_s: float) -> tuple[float, float]:
    """Lower starts earlier. Whoever was preempted or is overdue goes before all others, oldest first."""
    waited = max(now_s - request.arrival_time, 0.0) / age_s
    if request.num_preemptions > 0 or waited >= OVERDUE:
        return -math.inf, request.arrival_time
    area = request.num_tokens * left_tokens + left_tokens * (left_tokens + 1) / 2
    return math.log2(max(area, 1.0)) - waited, request.arrival_time


def front(
    waiting: Iterable[R], left: Callable[[R], int], now_s: float, age_s: float, most: int = 4
) -> list[R]:
    """Who of the first LOOK should be at the front, in order; nobody where nobody gave a hint."""
    seen = list(islice(waiting, LOOK))
    if len(seen) < 2 or all(hint_tokens(request) is None for request in seen):
        return []
    return nsmallest(most, seen, key=lambda request: score(request, left(request), now_s, age_s))
