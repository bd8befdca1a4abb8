"""Fit an energy model to windows whose energy was counted. Imports SciPy and LightGBM only when called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvwatt.energy_factors import FACTORS, Windows, joined
from kvwatt.energy_model import WITH_LAW, EnergyModel, Prior, accuracy, features_of, prior_power_w
from kvwatt.energy_prior import StepEnergy, WorkLaw, step_power_w, work_columns
from kvwatt.lattice import Floats
from kvwatt.training import TrainingError

MIN_ROWS = 30
ALWAYS = ("clock_mhz", "steps_per_s", "output_tokens_per_s")  # what no server that is served by us lacks


@dataclass(frozen=True, slots=True)
class EnergyOptions:
    """LightGBM for hundreds to tens of thousands of windows. `dropped`: share of the factors that a second
    copy of the windows lacks, each drawn on its own, so that the trees know what to do without them."""

    rounds: int = 300
    leaves: int = 15
    learning_rate: float = 0.05
    min_child_samples: int = 20
    l2: float = 5.0
    feature_share: float = 0.5
    dropped: float = 0.2
    seed: int = 1


def fit_energy(
    windows: Windows,
    energy_j: Floats,
    prior: Prior = Prior.BOTH,
    step: StepEnergy | None = None,
    options: EnergyOptions | None = None,
) -> EnergyModel:
    """A model of counted joules (n,). Raises `TrainingError` for too few or impossible rows."""
    options = options if options is not None else EnergyOptions()
    _check(windows, energy_j)
    watts = energy_j / windows.duration_s
    usual_w = float(np.exp(np.mean(np.log(watts))))
    law = fit_work_law(windows, watts, step if prior is Prior.BOTH else None) if prior in WITH_LAW else None
    whole = np.log(watts / prior_power_w(prior, windows, usual_w, law, step))
    offset = float(np.median(whole))
    seen, log_watts = _with_gaps(windows, np.log(watts), options)
    prior_w = prior_power_w(prior, seen, usual_w, law, step)
    trees = _boost(features_of(seen, prior_w), log_watts - np.log(prior_w) - offset, options)
    model = EnergyModel(prior, usual_w, offset, law, trees, len(windows))
    fitted = model.power_w(windows, step)
    return replace(model, errors={"seen_accuracy": accuracy(watts, fitted)})


def _check(windows: Windows, energy_j: Floats) -> None:
    if len(windows) < MIN_ROWS:
        raise TrainingError(f"{len(windows)} windows, at least {MIN_ROWS} are needed")
    if energy_j.shape != (len(windows),) or not (np.isfinite(energy_j).all() and (energy_j > 0).all()):
        raise TrainingError("energy_j: one positive finite number of joules per window is needed")


def _with_gaps(windows: Windows, target: Floats, options: EnergyOptions) -> tuple[Windows, Floats]:
    """The windows, and once more with factors missing at random."""
    if options.dropped <= 0.0:
        return windows, target
    values = windows.values.copy()
    gone = np.random.default_rng(options.seed).random(values.shape) < options.dropped
    gone[:, [FACTORS.index(name) for name in ALWAYS]] = False
    values[gone] = np.nan
    return joined([windows, Windows(windows.duration_s, values)]), np.concatenate([target, target])


def fit_work_law(windows: Windows, watts: Floats, step: StepEnergy | None = None) -> WorkLaw:
    """Non-negative least squares on relative error; a column that no window knows gets no price.

    `step`: its watts are one column of the law."""
    from scipy.optimize import nnls

    clock = windows.column("clock_mhz")
    reference = float(np.nanmax(clock)) if np.isfinite(clock).any() else 1.0
    tp = windows.column("tp")
    gpus = float(np.nanmean(tp)) if np.isfinite(tp).any() else 1.0
    columns = work_columns(windows, reference, gpus, None if step is None else step_power_w(step, windows))
    known = np.isfinite(columns)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, columns, 0.0).sum(axis=0) / count
    scale = np.where(mean > 0, mean, 1.0)
    usual = mean / scale
    filled = np.where(known, columns / scale, usual)
    prices, _ = nnls(filled / watts[:, None], np.ones(len(watts)))
    return WorkLaw(reference, _floats(scale), _floats(prices), _floats(usual), gpus)


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _boost(features: Floats, log_ratio: Floats, options: EnergyOptions) -> str:
    import lightgbm

    parameters: dict[str, Any] = {
        "objective": "l2",
        "num_leaves": options.leaves,
        "learning_rate": options.learning_rate,
        "min_child_samples": min(options.min_child_samples, max(len(features) // 20, 1)),
        "lambda_l2": options.l2,
        "feature_fraction_bynode": options.feature_share,
        "boost_from_average": False,
        "use_missing": False,
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": options.seed,
    }
    dataset = lightgbm.Dataset(features, log_ratio, params={"verbosity": -1})
    text: str = lightgbm.train(parameters, dataset, options.rounds).model_to_string()
    return text
