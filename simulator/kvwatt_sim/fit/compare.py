"""Two samples of one quantity side by side: means, quantiles, and the distance of their distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt_sim.fit.served import Observed

Floats = npt.NDArray[np.float64]
LEVELS = (0.5, 0.9, 0.99)
SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True)
class Sides:
    """`quantiles`: at `LEVELS`. `ks`: the largest distance of the two distribution functions, 0..1."""

    name: str
    real_mean: float
    simulated_mean: float
    real_quantiles: tuple[float, ...]
    simulated_quantiles: tuple[float, ...]
    ks: float

    @property
    def mean_error(self) -> float:
        """Simulated over real mean, less one."""
        return self.simulated_mean / self.real_mean - 1.0

    @property
    def quantile_errors(self) -> tuple[float, ...]:
        """The same for the quantiles."""
        pairs = zip(self.simulated_quantiles, self.real_quantiles, strict=True)
        return tuple(mine / real - 1.0 if real > 0 else 0.0 for mine, real in pairs)


def sides(name: str, real: Floats, simulated: Floats) -> Sides:
    """Both samples, NaN left out. Raises ValueError where one is empty or the real mean is not positive."""
    a, b = real[np.isfinite(real)], simulated[np.isfinite(simulated)]
    if not len(a) or not len(b) or a.mean() <= 0:
        raise ValueError(f"{name}: {len(a)} real and {len(b)} simulated values, some of them above 0 needed")
    quantiles = [tuple(float(q) for q in np.quantile(x, LEVELS)) for x in (a, b)]
    return Sides(name, float(a.mean()), float(b.mean()), quantiles[0], quantiles[1], ks_distance(a, b))


def ks_distance(a: Floats, b: Floats) -> float:
    """Kolmogorov's distance of two samples."""
    places = np.concatenate((a, b))
    below = [np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def compare(real: Observed, simulated: Observed, until_s: float) -> list[Sides]:
    """Batch and KV blocks over the time in which load came, and the latencies of all requests."""
    times_s = np.arange(SAMPLE_S / 2, until_s, SAMPLE_S)
    (batch, kv), (batch_sim, kv_sim) = real.at(times_s), simulated.at(times_s)
    pairs: Sequence[tuple[str, Floats, Floats]] = (
        ("batch", batch, batch_sim),
        ("KV blocks", kv, kv_sim),
        ("TTFT, s", real.ttft_s, simulated.ttft_s),
        ("TBT, s", real.tbt_s, simulated.tbt_s),
        ("time between two tokens, s", real.gaps_s, simulated.gaps_s),
        ("E2E, s", real.e2e_s, simulated.e2e_s),
    )
    return [sides(*pair) for pair in pairs]
