"""What the energy model is compared with: linear regression, hardware alone, a price per token.

Each is fitted to the same windows and says mean watts. The linear regression sees every factor and the
hardware model the meter's own two, utilization and clock, with trees: neither is weaker than it need be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvwatt.energy_factors import FACTORS, Windows
from kvwatt.energy_model import EnergyModel, Prior
from kvwatt.energy_training import EnergyOptions, fit_energy
from kvwatt.lattice import Floats

HARDWARE = ("clock_mhz", "utilization")
_LEAST_W = 1.0


@dataclass(frozen=True, slots=True)
class LinearEnergy:
    """watts = intercept + weights . (factors - mean) / spread; a factor that is not known is at its mean."""

    intercept: float
    weights: Floats
    mean: Floats
    spread: Floats

    def power_w(self, windows: Windows) -> Floats:
        """Mean watts, (n,); at least 1, for a straight line knows no floor."""
        scaled = (windows.values - self.mean) / self.spread
        watts = self.intercept + np.where(np.isfinite(scaled), scaled, 0.0) @ self.weights
        return np.asarray(np.maximum(watts, _LEAST_W))


def fit_linear(windows: Windows, energy_j: Floats) -> LinearEnergy:
    """Ordinary least squares of watts on all factors."""
    known = np.isfinite(windows.values)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, windows.values, 0.0)
    mean = filled.sum(axis=0) / count
    centred = np.where(known, windows.values - mean, 0.0)
    spread = np.sqrt((centred**2).sum(axis=0) / count)
    spread = np.where(spread > 0, spread, 1.0)
    watts = energy_j / windows.duration_s
    weights, *_ = np.linalg.lstsq(centred / spread, watts - watts.mean(), rcond=1e-9)
    return LinearEnergy(float(watts.mean()), np.asarray(weights), mean, spread)


@dataclass(frozen=True, slots=True)
class HardwareEnergy:
    """Trees over utilization and clock."""

    model: EnergyModel

    def power_w(self, windows: Windows) -> Floats:
        """Mean watts, (n,)."""
        return self.model.power_w(_hardware_only(windows))


def fit_hardware(windows: Windows, energy_j: Floats) -> HardwareEnergy:
    """The same trees as the energy model's, on the meter's factors alone."""
    options = EnergyOptions(dropped=0.0, feature_share=1.0)
    return HardwareEnergy(fit_energy(_hardware_only(windows), energy_j, Prior.FLAT, options=options))


def _hardware_only(windows: Windows) -> Windows:
    return windows.without(name for name in FACTORS if name not in HARDWARE)


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """So many joules per output token, whatever else happens."""

    token_j: float

    def power_w(self, windows: Windows) -> Floats:
        """Mean watts, (n,)."""
        return np.asarray(self.token_j * np.nan_to_num(windows.column("output_tokens_per_s")))


def fit_token_price(windows: Windows, energy_j: Floats) -> TokenPrice:
    """All joules over all tokens."""
    tokens = float(np.nansum(windows.column("output_tokens_per_s") * windows.duration_s))
    return TokenPrice(float(energy_j.sum()) / max(tokens, 1.0))
