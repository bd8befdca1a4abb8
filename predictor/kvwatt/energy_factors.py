"""What the energy of a stretch of serving depends on: four groups of factors, one row per window.

The groups are those of Liu (JIEAS 4(1), 2026): KV-cache configuration, scheduling, environment, workload.
A factor that nobody tells is NaN; every other value is finite and >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from kvwatt.lattice import Floats

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "kv": (
            "kv_capacity_tokens",
            "kv_usage",  # 0..1, mean over the window
            "preemptions_per_s",
            "prefix_hit_ratio",  # 0..1, of prompt tokens
        ),
        "scheduling": (
            "running",  # requests in the batch, mean over the window
            "waiting",
            "priority_share",  # 0..1, of requests with a priority other than the default
            "token_budget",  # max_num_batched_tokens
            "tp",
        ),
        "environment": (
            "clock_mhz",  # SM clock as read back, mean over the window
            "power_cap_w",
            "utilization",  # 0..1, as NVML tells it: share of time with any kernel
            "cpu_utilization",
            "flops_per_s",  # vLLM's estimated_flops_per_gpu, summed over the group
            "bytes_per_s",  # estimated_read_bytes_per_gpu + estimated_write_bytes_per_gpu
            "temperature_c",
        ),
        "workload": (
            "requests_per_s",
            "rate_dispersion",  # variance / mean of arrival counts: 1 = Poisson
            "prompt_tokens_per_s",  # computed: prefix-cache hits taken off
            "output_tokens_per_s",
            "steps_per_s",
            "prompt_mean_tokens",
            "prompt_cv",
            "output_mean_tokens",
            "output_cv",
        ),
    }
)
FACTORS = tuple(name for names in GROUPS.values() for name in names)
RATIOS = frozenset({"kv_usage", "prefix_hit_ratio", "priority_share", "utilization", "cpu_utilization"})
UNKNOWN = -1.0  # a factor that is not known, as trees see it: below every value


class FactorError(ValueError):
    """A window that cannot be; names the factor, the value and what is accepted."""


@dataclass(frozen=True, slots=True)
class Windows:
    """`duration_s` has shape (n,), `values` (n, len(FACTORS)); NaN where a factor is not known."""

    duration_s: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.duration_s)

    def column(self, name: str) -> Floats:
        """One factor, (n,). Raises `FactorError` for one that does not exist."""
        return np.asarray(self.values[:, index_of(name)])

    def select(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Windows:
        """The windows where `rows` holds, or those it names."""
        return Windows(self.duration_s[rows], self.values[rows])

    def without(self, names: Iterable[str]) -> Windows:
        """The same windows with these factors unknown."""
        values = self.values.copy()
        values[:, [index_of(name) for name in names]] = np.nan
        return Windows(self.duration_s, values)

    def replacing(self, name: str, value: float | Floats) -> Windows:
        """The same windows with one factor set."""
        values = self.values.copy()
        values[:, index_of(name)] = value
        return Windows(self.duration_s, values)


def index_of(name: str) -> int:
    """The factor's column. Raises `FactorError`."""
    try:
        return FACTORS.index(name)
    except ValueError:
        raise FactorError(f"factor {name!r}: one of {', '.join(FACTORS)} is accepted") from None


def window_row(duration_s: float, factors: Mapping[str, float]) -> tuple[float, ...]:
    """Duration and factors in order, what is not named NaN. Raises `FactorError`."""
    unknown = sorted(set(factors) - set(FACTORS))
    if unknown:
        index_of(unknown[0])
    if not 0.0 < duration_s < math.inf:
        raise FactorError(f"duration_s = {duration_s!r}: a positive finite number of seconds is accepted")
    for name, value in factors.items():
        most = 1.0 if name in RATIOS else math.inf
        within = 0.0 <= value <= most and value < math.inf
        if not (math.isnan(value) or within):
            accepted = "0 to 1" if name in RATIOS else "a finite number >= 0"
            raise FactorError(f"{name} = {value!r}: {accepted}, or NaN for unknown, is accepted")
    return (duration_s, *(float(factors.get(name, math.nan)) for name in FACTORS))


def windows_of(rows: Iterable[tuple[float, ...]]) -> Windows:
    """Rows of `window_row` as columns."""
    table = np.array(list(rows), dtype=np.float64).reshape(-1, len(FACTORS) + 1)
    return Windows(table[:, 0], table[:, 1:])


def joined(parts: Iterable[Windows]) -> Windows:
    """Windows one after another."""
    parts = list(parts)
    return Windows(
        np.concatenate([part.duration_s for part in parts]), np.concatenate([part.values for part in parts])
    )
