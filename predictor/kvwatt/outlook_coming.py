"""What stands for the requests of the next seconds: three of them, behind a burst as large as may come."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from math import exp, inf, nan, sqrt

import numpy as np
import numpy.typing as npt

from kvwatt.traffic import PROMPT_LEVELS, Traffic

FloatArray = npt.NDArray[np.float64]

COMING_S = 3.0  # so many seconds of arrivals stand for those to come
COMING_LEVELS = (0.5, 0.9, 0.99)  # of prompt and burst; each the upper end of its share
COMING_SHARES = (0.5, 0.4, 0.1)
COMING_Z = (0.0, 1.28, 2.33)
LEVELS: tuple[float, ...] = tuple(PROMPT_LEVELS.tolist())
USUAL_TBT_S = 0.05  # only sizes the time in which a request to come may meet a prompt
TINY = 1e-9
# Columns of a cohort's table.
ARRIVAL, FIRST, PROMPT, COMPUTED, PRODUCED, WEIGHT, LIMIT, HINT = range(8)
_NONE, _NOTHING, _ENDLESS = ([value] * len(COMING_LEVELS) for value in (nan, 0.0, inf))


@lru_cache(maxsize=8)  # by identity: between two pages the traffic is one and the same object
def coming(traffic: Traffic, reaction_s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of requests to come, at COMING_LEVELS: their columns (8, levels), but for the time; the prompt tokens
    until the first token beside the queue, their own and those of a burst; and the prompt tokens that one
    of them meets while it decodes."""
    return _coming(
        traffic.arrival_per_s,
        traffic.dispersion,
        traffic.prompt_mean_tokens,
        traffic.prompt_sd_tokens,
        traffic.output_mean_tokens,
        tuple(traffic.prompt_quantiles_tokens.tolist()),
        reaction_s,
    )


@lru_cache(maxsize=64)  # the same from page to page, and often longer
def _coming(
    arrival_per_s: float,
    dispersion: float,
    prompt_mean: float,
    prompt_sd: float,
    output_mean: float,
    quantiles: tuple[float, ...],
    reaction_s: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    count = arrival_per_s * reaction_s
    spread = sqrt(count * (dispersion * prompt_mean**2 + prompt_sd**2))
    # Where few come, the mean share of prompts says little, and one long prompt by chance breaks the mean of
    # a short answer.
    any_met = max(1.0 - exp(-arrival_per_s * output_mean * USUAL_TBT_S), TINY)
    prompts = [_between(place, quantiles) for place in _PLACES]
    met = [_at(1.0 - (1.0 - level) / any_met, quantiles) for level in COMING_LEVELS]
    ahead = [count * prompt_mean + z * spread + own for z, own in zip(COMING_Z, prompts, strict=True)]
    weights = [arrival_per_s * COMING_S * share for share in COMING_SHARES]
    # In the order of a cohort's columns. Their prompts count as computed, for nobody waits behind them yet.
    rows = (*_NONE, *_NONE, *prompts, *prompts, *_NOTHING, *weights, *_ENDLESS, *_NONE, *ahead, *met)
    table = np.array(rows).reshape(10, len(prompts))
    table.flags.writeable = False
    return table[:8], table[8], table[9]


def _at(level: float, quantiles: Sequence[float]) -> float:
    """A quantile of prompts from those at PROMPT_LEVELS; no tokens at level 0 and below."""
    return _between(_place(level), quantiles) if level > 0.0 else 0.0


def _between(place: tuple[int, float], quantiles: Sequence[float]) -> float:
    above, share = place
    below = quantiles[above - 1]
    return below + share * (quantiles[above] - below)


def _place(level: float) -> tuple[int, float]:
    """Which of LEVELS is just above, and how far on the way there from the one before."""
    above = max(bisect_left(LEVELS, level), 1)
    low, high = LEVELS[above - 1], LEVELS[above]
    return above, (level - low) / (high - low)


_PLACES = tuple(map(_place, COMING_LEVELS))
