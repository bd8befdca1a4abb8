"""PROJ: does what runs now, and whoever is to start now, fit the memory until the last has left?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def peak_tokens(held: Sequence[int] | Ints, left: Sequence[int] | Ints) -> int:
    """Largest memory over the coming rounds, in tokens; shapes (n,), nobody else starting.

    Job i holds `held[i]` now, one more in every coming round, and leaves after `left[i]` >= 1 rounds.
    Memory only falls when somebody leaves, so with r over the distinct `left`:
    max over r of the sum over left_i >= r of (held_i + r).
    """
    left_rounds = np.asarray(left, dtype=np.int64)
    if left_rounds.size == 0:
        return 0
    order = np.argsort(-left_rounds, kind="stable")
    rounds = left_rounds[order]
    # Within one value of r only the last of its jobs has all of them in the prefix; the others' sums are
    # smaller, so the maximum over all prefixes is the maximum over distinct r.
    sums = np.cumsum(np.asarray(held, dtype=np.int64)[order]) + np.arange(1, rounds.size + 1) * rounds
    return int(sums.max())


def fits(held: Sequence[int] | Ints, left: Sequence[int] | Ints, memory_tokens: int) -> bool:
    """PROJ for known (or capped) remaining rounds."""
    return peak_tokens(held, left) <= memory_tokens
