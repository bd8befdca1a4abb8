"""Which stretches of time are served at driver default, to measure what control saves: an experiment.

Time in control is cut into slots. Before a slot begins it is put into a stratum by the load of the slot
before, and then it is drawn: of every `block` slots of a stratum in a row exactly one is held at driver
default, each with the same probability 1 / block (permuted blocks). So

- every slot has the same chance, whatever its load: sums over held slots estimate sums over all of them;
- high and low load, and the hours of a day, get their share of the few slots there are;
- who knows the draws so far cannot tell the next, and windows in different blocks are independent.

The draw is a hash of a seed with stratum and block number: from the seed that the ledger keeps anybody can
check that the slots were chosen before they were measured. Pure; times are monotonic seconds.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum

SHARE = 0.008
WINDOW_S, WARMUP_S, SETTLE_S = 90.0, 30.0, 30.0
STRATA = 3
LOADS_KEPT = 720
LEAST_LOADS = 24  # before there are so many, all slots are one stratum
LARGEST_BLOCK = 10_000


class Arm(StrEnum):
    """What a stretch of time counts as."""

    NONE = "none"  # not in control: no part of the experiment
    CONTROLLED = "controlled"
    SETTLING = "settling"  # in control, but the load still bears the marks of driver default
    WARMUP = "warmup"  # at driver default, but the load still bears the marks of lower clocks
    DEFAULT = "default"  # at driver default, measured


HELD = frozenset({Arm.WARMUP, Arm.DEFAULT})


@dataclass(frozen=True, slots=True)
class HoldoutParams:
    """`share` of the time in control is held, in windows of `window_s`; 0 holds none.

    Of a window the first `warmup_s` are not measured: requests that came before it were slowed by lower
    clocks, more of them run than would at default, and their backlog is still being worked off. What
    follows a window is not counted for control for `settle_s`, for the same reason the other way round.
    """

    share: float = SHARE
    window_s: float = WINDOW_S
    warmup_s: float = WARMUP_S
    settle_s: float = SETTLE_S

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 0.5:
            raise ValueError(f"share must lie between 0 and 0.5, got {self.share}")
        if not (0.0 <= self.warmup_s < self.window_s < math.inf and 0.0 <= self.settle_s < math.inf):
            raise ValueError(f"warmup_s must be shorter than window_s, and both finite, got {self}")

    @property
    def block(self) -> int:
        """Slots of which one is held, so that no more than `share` is; 0: none ever."""
        return min(math.ceil(1.0 / self.share - 1e-9), LARGEST_BLOCK) if self.share > 0 else 0


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of time that is held or not as a whole. `place`: how many of its stratum came before it."""

    number: int
    start_s: float
    end_s: float
    stratum: int
    place: int
    held: bool


class Strata:
    """Puts a load among those seen before: thirds of the newest LOADS_KEPT."""

    def __init__(self) -> None:
        self._loads: deque[float] = deque(maxlen=LOADS_KEPT)

    def place(self, load: float) -> int:
        """The stratum of `load`, 0 the lowest; it counts for those to come. Unit as the caller likes."""
        stratum = 0
        if len(self._loads) >= LEAST_LOADS:
            known = sorted(self._loads)
            bounds = [known[len(known) * i // STRATA] for i in range(1, STRATA)]
            stratum = bisect_right(bounds, load)
        self._loads.append(load)
        return stratum


class Draws:
    """Slot after slot: which are held."""

    def __init__(self, params: HoldoutParams, seed: bytes) -> None:
        self._params = params
        self._seed = seed
        self._strata = Strata()
        self._seen: Counter[int] = Counter()
        self._number = 0

    def next(self, start_s: float, load: float) -> Slot:
        """The slot that begins at `start_s`, after one whose load was `load`."""
        stratum, size = self._strata.place(load), self._params.block
        place = self._seen[stratum]
        held = size > 0 and is_drawn(self._seed, stratum, place, size)
        self._seen[stratum] += 1
        self._number += 1
        return Slot(self._number, start_s, start_s + self._params.window_s, stratum, place, held)


def is_drawn(seed: bytes, stratum: int, place: int, size: int) -> bool:
    """Whether the slot at this place of its stratum is the one of its block that is held."""
    block, within = divmod(place, size)
    return within == drawn(seed, stratum, block, size)


def drawn(seed: bytes, stratum: int, block: int, size: int) -> int:
    """Which of the `size` slots of a block is held, uniformly: 0 .. size - 1."""
    digest = hashlib.sha256(b"%s/%d/%d" % (seed, stratum, block)).digest()
    return int.from_bytes(digest[:16], "big") * size >> 128
