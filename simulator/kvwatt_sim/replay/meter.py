"""Histograms as the server's metrics page keeps them, for an engine in virtual time."""

from __future__ import annotations

from math import inf

import numpy as np
import numpy.typing as npt

from kvwatt.state import Histogram

# Bucket bounds of vLLM 0.32's metrics page.
TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0, inf,
)  # fmt: skip
TBT_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, inf,
)  # fmt: skip
E2E_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0, inf,
)  # fmt: skip
LENGTH_TOKENS = (
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0,
    50000.0, 100000.0, inf,
)  # fmt: skip
STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, inf)


def histogram(bounds: tuple[float, ...], counts: npt.NDArray[np.float64], total: float) -> Histogram:
    """The page's form: cumulative counts and the sum of what was observed."""
    cumulative = tuple(np.cumsum(counts).tolist())
    return Histogram(bounds, cumulative, total, cumulative[-1])
