"""The models to beat: plain LightGBM as in throttLL'eM, and the physical prior without a correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvwatt.energy import PowerPrior
from kvwatt.fitting import fit_power_prior, fit_step_prior
from kvwatt.lattice import Floats
from kvwatt.prior import StepPrior
from kvwatt.profiles import ProfileTable


@dataclass(frozen=True, slots=True)
class PlainModel:
    """Gradient boosted trees on iterations per second and on watts; no law, no bound, no monotonicity."""

    ips: Any  # lightgbm.Booster
    watts: Any

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        """Seconds of one step."""
        features = np.stack([clock_mhz, batch, kv, prefill], axis=1)
        return np.asarray(1.0 / np.maximum(self.ips.predict(features, num_threads=1), 1e-3))

    def power_w(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        """Watts while such steps run."""
        features = np.stack([clock_mhz, batch, kv, prefill], axis=1)
        return np.asarray(self.watts.predict(features, num_threads=1))


@dataclass(frozen=True, slots=True)
class PriorModel:
    """The physical laws alone."""

    step: StepPrior
    power: PowerPrior

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        """Seconds of one step."""
        return self.step.step_time_s(clock_mhz, batch, kv, prefill)

    def power_w(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        """Watts while such steps run."""
        return self.power.busy_w(self.step, clock_mhz, batch, kv, prefill)


def fit_plain(table: ProfileTable) -> PlainModel:
    """LightGBM with its defaults but for `min_child_samples`, which would not let small tables split."""
    import lightgbm

    parameters = {"objective": "l2", "min_child_samples": 5, "verbosity": -1, "num_threads": 1, "seed": 1}
    features = np.stack([table.clock_mhz, *table.load], axis=1)
    known = np.isfinite(table.power_w)
    ips = lightgbm.train(parameters, lightgbm.Dataset(features, 1 / table.step_time_s), 200)
    watts = lightgbm.train(parameters, lightgbm.Dataset(features[known], table.power_w[known]), 200)
    return PlainModel(ips, watts)


def fit_prior(table: ProfileTable) -> PriorModel:
    """Step-time and power laws fitted to the table."""
    step = fit_step_prior(table)
    return PriorModel(step, fit_power_prior(table.select(np.isfinite(table.power_w)), step))
