"""Fit the physical priors and the LightGBM corrections. Imports SciPy and LightGBM only when called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvwatt.energy import PowerModel, PowerPrior, power_terms
from kvwatt.lattice import Floats, Lattice, context_tokens, knots_of
from kvwatt.prior import COEFFICIENTS, StepPrior, step_time_s
from kvwatt.profiles import ProfileTable
from kvwatt.trees import grid_values, read_trees

OVERLAP_RANGE = (1.0, 8.0)
_TOWARDS_START = 0.01  # weight of the pull that keeps unidentified coefficients finite
_PRIOR_ROWS = 300
_OUTLIER_LOG = 0.03  # relative error beyond which a point counts linearly, not squared


@dataclass(frozen=True, slots=True)
class BoostOptions:
    """LightGBM for tables of tens to thousands of rows: shallow, shrunk, few samples per leaf."""

    rounds: int = 200
    leaves: int = 8
    learning_rate: float = 0.1
    min_child_samples: int = 3
    l2: float = 1.0


def fit_step_prior(table: ProfileTable) -> StepPrior:
    """Bounded least squares on log step time from a start that the data scales."""
    from scipy.optimize import least_squares

    table = _thinned(table)
    start = np.log(_start(table))
    low, high = start - 8.0, start + 4.0
    low[-2:], high[-2:] = np.log(OVERLAP_RANGE)
    stiffness = np.full(len(start), _TOWARDS_START)
    stiffness[-2:] *= 3.0

    def residuals(log_c: Floats) -> Floats:
        predicted = step_time_s(np.exp(log_c), table.clock_mhz, *table.load)
        return np.concatenate([np.log(predicted / table.step_time_s), stiffness * (log_c - start)])

    fit = least_squares(
        residuals,
        start,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=_OUTLIER_LOG,
        max_nfev=100,
        x_scale="jac",
        ftol=1e-5,
    )
    lowest, highest = OVERLAP_RANGE
    values = np.exp(fit.x)
    values[-2:] = np.clip(values[-2:], lowest, highest)
    return StepPrior(tuple(float(value) for value in values))


def _thinned(table: ProfileTable) -> ProfileTable:
    """A law of 15 coefficients needs no more rows than this; they are drawn with a fixed seed."""
    if len(table) <= _PRIOR_ROWS:
        return table
    chosen = np.zeros(len(table), dtype=bool)
    chosen[np.random.default_rng(0).permutation(len(table))[:_PRIOR_ROWS]] = True
    return table.select(chosen)


def _start(table: ProfileTable) -> Floats:
    """Coefficients of the right size: shares of the shortest step, and of the least time per token."""
    g = 1000.0 / table.clock_mhz
    shortest = float(table.step_time_s.min())
    decode = _least_rate(table.step_time_s, table.decode_batch * g)
    prefill = _least_rate(table.step_time_s, table.prefill_tokens * g)
    per_token = prefill if np.isfinite(prefill) else decode
    decode = decode if np.isfinite(decode) else per_token
    kv = _least_rate(table.step_time_s, table.kv_tokens)
    kv = kv if np.isfinite(kv) else per_token / 1000.0
    longest = max(float(table.prefill_tokens.max()), 1000.0)
    shares = {
        "overhead_s": 0.2 * shortest,
        "overhead_clock_s": 0.05 * shortest,
        "weights_s": 0.6 * shortest,
        "weights_clock_s": 0.05 * shortest,
        "width_s": 0.02 * shortest,
        "width_clock_s": 0.02 * shortest,
        "decode_compute_s": 0.8 * decode,
        "prefill_compute_s": 0.8 * per_token,
        "sequence_s": 0.05 * decode,
        "sequence_clock_s": 0.05 * decode,
        "kv_bandwidth_s": 0.5 * kv,
        "kv_clock_s": 0.5 * kv,
        "prefill_attention_s": 0.1 * per_token / longest,
        "overlap": 4.0,
        "kv_overlap": 6.0,
    }
    return np.array([shares[name] for name in COEFFICIENTS])


def _least_rate(seconds: Floats, amount: Floats) -> float:
    there = amount > 0
    return float(np.min(seconds[there] / amount[there])) if there.any() else float("inf")


def fit_power_prior(table: ProfileTable, step: StepPrior) -> PowerPrior:
    """Non-negative least squares on relative error; idle rows count where there are any."""
    from scipy.optimize import nnls

    reference = float(table.clock_mhz.max())
    compute, memory = step.shares(table.clock_mhz, *table.load)
    busy = np.stack(power_terms(table.clock_mhz / reference, compute, memory, 1.0), axis=1)
    zero = np.zeros(len(table.idle_clock_mhz))
    idle = np.stack(power_terms(table.idle_clock_mhz / reference, zero, zero, 0.0), axis=1)
    columns = np.concatenate([busy, idle])
    watts = np.concatenate([table.power_w, table.idle_power_w])
    coefficients, _ = nnls(columns / watts[:, None], np.ones(len(watts)))
    return PowerPrior(
        tuple(float(value) for value in coefficients),
        reference,
        tuple(float(value) for value in table.idle_clock_mhz),
        tuple(float(value) for value in table.idle_power_w),
    )


def boost(table: ProfileTable, log_ratio: Floats, options: BoostOptions) -> str:
    """LightGBM text model of `log_ratio` over (clock, batch, context, prefill)."""
    import lightgbm

    parameters: dict[str, Any] = {
        "objective": "l2",
        "num_leaves": options.leaves,
        "learning_rate": options.learning_rate,
        "min_child_samples": min(options.min_child_samples, max(len(table) // 4, 1)),
        "min_data_in_bin": 1,
        "lambda_l2": options.l2,
        "boost_from_average": False,
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": 1,
    }
    features = np.stack([table.clock_mhz, *_tree_load(*table.load)], axis=1)
    dataset = lightgbm.Dataset(features, log_ratio, params={"verbosity": -1})
    text: str = lightgbm.train(parameters, dataset, options.rounds).model_to_string()
    return text


def _tree_load(batch: Floats, kv: Floats, prefill: Floats) -> tuple[Floats, Floats, Floats]:
    return batch, context_tokens(batch, kv), prefill


@dataclass(frozen=True, slots=True)
class Axes:
    """Where a correction is read: knots of the load and nodes of the clock."""

    clocks_mhz: tuple[float, ...]
    batch: tuple[float, ...]
    context: tuple[float, ...]
    prefill: tuple[float, ...]


def axes_of(table: ProfileTable) -> Axes:
    """Knots at the values of the table, thinned to quantiles where there are many."""
    decoding = table.decode_batch > 0
    batch, context, prefill = _tree_load(*table.load)
    return Axes(
        knots_of(table.clock_mhz),
        knots_of(batch),
        knots_of(context[decoding]) if decoding.any() else (0.0,),
        knots_of(prefill),
    )


def lattice_of(trees: str, axes: Axes) -> Lattice:
    """The trees' values at the knots. Raises ValueError on a text that kvwatt would not write."""
    read = read_trees(trees, features=4)
    values = grid_values(read, (axes.clocks_mhz, axes.batch, axes.context, axes.prefill))
    if axes.batch[0] == 0.0:  # where nobody decodes there is no context
        values[:, 0] = grid_values(read, (axes.clocks_mhz, (0.0,), (0.0,), axes.prefill))[:, 0]
    if not np.all(np.isfinite(values)):
        raise ValueError("model predicts values that are not finite")
    return Lattice(axes.batch, axes.context, axes.prefill, axes.clocks_mhz, np.moveaxis(values, 0, -1).copy())


def fit_power(table: ProfileTable, step: StepPrior, options: BoostOptions) -> tuple[PowerModel, str]:
    """Power prior and its correction from the rows whose power was measured."""
    measured = table.select(np.isfinite(table.power_w))
    prior = fit_power_prior(measured, step)
    log_ratio = np.log(measured.power_w / prior.busy_w(step, measured.clock_mhz, *measured.load))
    trees = boost(measured, log_ratio, options)
    return PowerModel(prior, lattice_of(trees, axes_of(measured))), trees
