"""Energy of a window of serving: a physical prior times what boosted trees learned over groups of factors.

    E = duration x P_prior(window) x exp(offset + sum of trees(factors))

Stage one of Liu's two (JIEAS 4(1), 2026); stage two, which keeps rate and latency feasible while a lever is
moved, is the queueing model's. Before anything was learned offset and trees are nothing and the step model of
a shipped card speaks alone. Energy is that of the whole GPU group, idle included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from kvwatt.energy_factors import FACTORS, UNKNOWN, Windows
from kvwatt.energy_prior import StepEnergy, WorkLaw, load_of, step_power_w
from kvwatt.energy_trees import row_values
from kvwatt.lattice import Floats
from kvwatt.trees import Tree, read_trees

DERIVED = ("prior_w", "tokens_per_step", "kv_tokens")
FEATURES = (*FACTORS, *DERIVED)


class Prior(StrEnum):
    """What the trees correct; see `energy_prior`."""

    STEPS = "steps"
    WORK = "work"
    BOTH = "both"
    FLAT = "flat"  # one power for all windows: the trees alone


WITH_LAW = (Prior.WORK, Prior.BOTH)
WITH_STEPS = (Prior.STEPS, Prior.BOTH)


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """Pure numpy. `usual_w` stands where the prior cannot be told; `trees` is LightGBM's text, or empty."""

    prior: Prior
    usual_w: float
    offset: float = 0.0
    law: WorkLaw | None = None
    trees: str = ""
    rows: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)
    parsed: tuple[Tree, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (0.0 < self.usual_w < np.inf and np.isfinite(self.offset)):
            raise ValueError(f"usual_w must be positive and offset finite, got {self.usual_w}, {self.offset}")
        if (self.prior in WITH_LAW) != (self.law is not None):
            raise ValueError(f"prior {self.prior}: a work law is there if and only if the prior has one")
        read = tuple(read_trees(self.trees, len(FEATURES))) if self.trees else ()
        object.__setattr__(self, "parsed", read)

    def power_w(self, windows: Windows, step: StepEnergy | None = None) -> Floats:
        """Mean watts of each window, (n,), above 0. `step`: the engine's step model, which the priors
        `STEPS` and `BOTH` need. Raises ValueError without it."""
        prior_w = self.prior_w(windows, step)
        log_ratio = np.full(len(windows), self.offset)
        if self.parsed:
            log_ratio += row_values(self.parsed, features_of(windows, prior_w))
        return np.asarray(prior_w * np.exp(log_ratio))

    def prior_w(self, windows: Windows, step: StepEnergy | None = None) -> Floats:
        """Watts before the correction, (n,)."""
        return prior_power_w(self.prior, windows, self.usual_w, self.law, step)

    def energy(self, windows: Windows, step: StepEnergy | None = None) -> Energy:
        """Joules per window, per output token and per request."""
        return energy_of(windows, self.power_w(windows, step))


def shipped(usual_w: float) -> EnergyModel:
    """The model before any window was seen: the step model's law alone."""
    return EnergyModel(Prior.STEPS, usual_w)


@dataclass(frozen=True, slots=True)
class Energy:
    """Each (n,). NaN per token or request where none came; idle energy is in all three."""

    window_j: Floats
    output_token_j: Floats
    request_j: Floats


def energy_of(windows: Windows, power_w: Floats) -> Energy:
    """The three figures from mean watts."""
    rates = [windows.column(name) for name in ("output_tokens_per_s", "requests_per_s")]
    with np.errstate(divide="ignore", invalid="ignore"):
        per_token, per_request = (np.where(rate > 0, power_w / rate, np.nan) for rate in rates)
    return Energy(power_w * windows.duration_s, per_token, per_request)


def prior_power_w(
    prior: Prior, windows: Windows, usual_w: float, law: WorkLaw | None, step: StepEnergy | None
) -> Floats:
    """Watts by the prior; `usual_w` where it cannot tell. Raises ValueError without what it needs."""
    if prior in WITH_STEPS and step is None:
        raise ValueError(f"prior {prior}: a step model is needed")
    if prior in WITH_LAW and law is None:
        raise ValueError(f"prior {prior}: a work law is needed")
    found = np.full(len(windows), usual_w)
    step_w = step_power_w(step, windows) if step is not None and prior in WITH_STEPS else None
    if law is not None:
        found = law.power_w(windows, step_w)
    elif step_w is not None:
        found = step_w
    return np.where(np.isfinite(found) & (found > 0), found, usual_w)


def features_of(windows: Windows, prior_w: Floats) -> Floats:
    """What the trees see: factors and three derived ones, (n, len(FEATURES)), `UNKNOWN` for NaN."""
    load = load_of(windows)
    derived = np.stack([prior_w, load.batch, load.kv_tokens], axis=1)
    table = np.concatenate([windows.values, derived], axis=1)
    return np.where(np.isfinite(table), table, UNKNOWN)


def accuracy(observed_j: Floats, predicted_j: Floats) -> float:
    """1 - MAPE, as the paper counts it; 1 is exact, below 0 is worse than saying nothing."""
    return 1.0 - float(np.mean(np.abs(predicted_j / observed_j - 1.0)))
