"""The built-in conversation workload: no file needed, the same requests for the same seed.

The laws, fitted to the Azure 2023 conversation trace (Azure/AzurePublicDataset, CC-BY; 19,366 requests
in 58 minutes; medians 1,020 tokens in, 129 out). Only the fitted numbers are kept here, and
tests/workload compares them with the trace where it is at hand.

Lengths. Prompt lengths follow PROMPT_TOKENS, a quantile function. Output lengths depend on the prompt,
but not monotonically (rank correlation 0.07, yet the mean output is 412 tokens in the sixth decile of
prompt length and 74 in the tenth), so each decile of prompt length has its own quantile function.

Arrivals. A gamma renewal process run on a clock that speeds up and slows down: the rate is lognormal
with a correlation time of minutes. In the trace the count's autocorrelation is flat (0.22 to 0.18)
from one second to one minute and 0.1 at five minutes, and little variance is left inside a second.
"""

from __future__ import annotations

from math import exp, inf, log1p, sqrt

import numpy as np
from numpy.typing import NDArray

from kvwatt_sim.traces import TraceRequest

Floats = NDArray[np.float64]

GAP_CV2 = 1.08  # squared coefficient of variation of the gaps at a constant rate
RATE_CV = 0.28  # coefficient of variation of the slowly varying rate
RATE_CORRELATION_S = 300.0

# Quantile levels and values of ContextTokens.
PROMPT_LEVELS = (
    0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7,
    0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99, 0.995, 0.999, 1.0,
)  # fmt: skip
PROMPT_TOKENS = (
    2, 29, 91, 181, 207, 372, 387, 403, 703, 1020, 1071, 1130,
    1315, 1876, 2734, 4073, 4079, 4086, 4098, 4142, 4831, 6179, 14050,
)  # fmt: skip

# Quantile levels of GeneratedTokens, and one row of values for each decile of ContextTokens.
OUTPUT_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
OUTPUT_TOKENS = (
    (11, 12, 16, 67, 112, 161, 189, 217, 217, 295, 1000),
    (7, 14, 18, 18, 59, 76, 99, 162, 184, 217, 436),
    (24, 53, 72, 80, 88, 96, 109, 131, 143, 171, 200),
    (25, 51, 75, 81, 89, 99, 113, 140, 153, 200, 739),
    (10, 35, 57, 82, 122, 395, 415, 448, 514, 609, 921),
    (33, 64, 370, 379, 394, 406, 428, 477, 538, 667, 1000),
    (28, 51, 363, 377, 393, 407, 429, 500, 569, 662, 1000),
    (26, 42, 60, 92, 180, 396, 417, 452, 523, 643, 992),
    (15, 31, 44, 50, 70, 95, 138, 191, 233, 421, 918),
    (17, 26, 30, 35, 43, 58, 87, 132, 154, 256, 757),
)


def generate(rate_per_s: float, duration_s: float, seed: int) -> tuple[TraceRequest, ...]:
    """Conversation requests that arrive in [0, duration_s), in order of arrival.

    `rate_per_s` is the mean rate over this very window (the slow variation is scaled to it), so that
    a short run at a given load has that load and only the bursts differ from seed to seed.
    """
    for name, value in (("rate_per_s", rate_per_s), ("duration_s", duration_s)):
        if not 0.0 < value < inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    rate_rng, gap_rng, length_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    arrivals = _arrivals_s(rate_per_s, duration_s, rate_rng, gap_rng)
    prompts, outputs = _lengths(len(arrivals), length_rng)
    return tuple(
        TraceRequest(float(at), int(prompt), int(output))
        for at, prompt, output in zip(arrivals, prompts, outputs, strict=True)
    )


def _arrivals_s(
    rate_per_s: float, duration_s: float, rate_rng: np.random.Generator, gap_rng: np.random.Generator
) -> Floats:
    """Times at which the cumulated rate passes the points of a gamma renewal process of mean gap 1."""
    grid_s, level = _rate_levels(duration_s, rate_rng)
    step_s = grid_s[1] - grid_s[0]
    expected = np.concatenate(([0.0], np.cumsum((level[1:] + level[:-1]) / 2.0) * step_s))
    expected *= rate_per_s * duration_s / expected[-1]
    total = float(expected[-1])
    count = int(total + 10.0 * sqrt(total) + 20.0)
    gaps = gap_rng.gamma(1.0 / GAP_CV2, GAP_CV2, size=count)
    gaps[0] *= gap_rng.random()  # the window opens somewhere inside a gap
    points = np.cumsum(gaps)
    return np.interp(points[points < total], expected, grid_s)


def _rate_levels(duration_s: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Relative rate on a grid: exp of a stationary Ornstein-Uhlenbeck process."""
    steps = max(2, min(int(duration_s) + 1, 100_000))
    grid_s = np.linspace(0.0, duration_s, steps)
    sigma = sqrt(log1p(RATE_CV**2))
    keep = exp(-duration_s / (steps - 1) / RATE_CORRELATION_S)
    noise = rng.normal(size=steps)
    log_level = np.empty(steps)
    log_level[0] = noise[0]
    for index in range(1, steps):
        log_level[index] = keep * log_level[index - 1] + sqrt(1.0 - keep**2) * noise[index]
    return grid_s, np.exp(sigma * log_level)


def _lengths(count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    prompt_level = rng.random(count)
    output_level = rng.random(count)
    prompts = np.interp(prompt_level, PROMPT_LEVELS, PROMPT_TOKENS)
    decile = np.minimum((prompt_level * len(OUTPUT_TOKENS)).astype(np.int64), len(OUTPUT_TOKENS) - 1)
    by_decile = np.stack([np.interp(output_level, OUTPUT_LEVELS, row) for row in OUTPUT_TOKENS])
    outputs = by_decile[decile, np.arange(count)]
    return np.maximum(np.rint(prompts), 1).astype(np.int64), np.maximum(np.rint(outputs), 1).astype(np.int64)
