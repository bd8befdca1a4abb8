"""Train a step model from a profile table, with its errors measured on points it did not see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvwatt.fitting import BoostOptions, axes_of, boost, fit_power, fit_step_prior, lattice_of
from kvwatt.lattice import Floats
from kvwatt.manifest import Manifest
from kvwatt.profiles import ProfileTable
from kvwatt.throughput import StepModel

Mask = npt.NDArray[np.bool_]
COVERAGE = 0.9
SPLIT_SEED = 0
MIN_ROWS = 12
MAX_CLOCK_FOLDS = 8
SMALL_ROWS = 500
BOUND_FOLDS = 40


class TrainingError(ValueError):
    """The table cannot carry a model; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a table comes from, for the manifest."""

    hardware: str
    vllm_version: str = "unknown"
    model_name: str = "unknown"
    created: str = ""


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Predictions for points left out of training; NaN for those that no fold left out."""

    step_time_s: Floats
    power_w: Floats


def train(
    table: ProfileTable,
    origin: Origin,
    *,
    folds: int | None = None,
    by_clock: bool = True,
    options: BoostOptions | None = None,
) -> StepModel:
    """A model with its bound and its cross-validated errors in the manifest. Raises `TrainingError`.

    `folds` defaults to 10, or 5 above 500 rows; so are the clocks that are left out fewer there. The
    bound has folds of its own, `BOUND_FOLDS`, unless `folds` says otherwise.
    """
    options = options if options is not None else BoostOptions()
    small = len(table) <= SMALL_ROWS
    count = folds or (10 if small else 5)
    model = fit(table, origin, options)

    def fit_fold(rows: ProfileTable) -> StepModel:
        return fit(rows, origin, options)

    random = cross_validate(table, random_folds(len(table), count), fit_fold)
    errors = {f"fold_{key}": value for key, value in scores(table, random).items()}
    if by_clock and len(np.unique(table.clock_mhz)) >= 4:
        clocks = cross_validate(
            table, clock_folds(table.clock_mhz, MAX_CLOCK_FOLDS if small else 4), fit_fold
        )
        errors |= {f"clock_{key}": value for key, value in scores(table, clocks).items()}
        inside = (table.clock_mhz > table.clock_mhz.min()) & (table.clock_mhz < table.clock_mhz.max())
        errors |= {f"inner_clock_{key}": v for key, v in scores(table, clocks, inside).items()}
    if folds is None and small:
        factor = bound(table, fit_fold)
    else:
        factor = upper_factor(table.step_time_s / random.step_time_s)
    return replace(model, upper_factor=factor, manifest=replace(model.manifest, errors=errors))


def fit(table: ProfileTable, origin: Origin, options: BoostOptions | None = None) -> StepModel:
    """Priors and corrections on all rows; `upper_factor` is that of the training residuals."""
    _check(table)
    options = options if options is not None else BoostOptions()
    prior = fit_step_prior(table)
    log_ratio = np.log(table.step_time_s / prior.step_time_s(table.clock_mhz, *table.load))
    trees = boost(table, log_ratio, options)
    power, power_trees = fit_power(table, prior, options)
    manifest = Manifest(
        hardware=origin.hardware,
        tp=table.tp,
        rows=len(table),
        ranges=_ranges(table),
        vllm_version=origin.vllm_version,
        model_name=origin.model_name,
        created=origin.created,
    )
    correction = lattice_of(trees, axes_of(table))
    return StepModel(prior, correction, power, 1.1, manifest, trees, power_trees)


def _check(table: ProfileTable) -> None:
    if len(table) < MIN_ROWS:
        raise TrainingError(f"the profile has {len(table)} busy rows, at least {MIN_ROWS} are needed")
    clocks = np.unique(table.clock_mhz)
    if len(clocks) < 2:
        raise TrainingError(f"the profile has one clock ({clocks[0]:g} MHz), at least 2 are needed")
    measured = int(np.isfinite(table.power_w).sum())
    if measured < MIN_ROWS:
        raise TrainingError(f"the profile has power in {measured} rows, at least {MIN_ROWS} are needed")


def _ranges(table: ProfileTable) -> dict[str, tuple[float, float]]:
    names = ("clock_mhz", "decode_batch", "kv_tokens", "prefill_tokens")
    return {name: (float(getattr(table, name).min()), float(getattr(table, name).max())) for name in names}


def random_folds(rows: int, count: int, seed: int = SPLIT_SEED) -> Iterator[Mask]:
    """Masks of the rows that each fold leaves out: a fixed permutation, dealt in turn."""
    order = np.random.default_rng(seed).permutation(rows)
    for fold in range(min(count, rows)):
        mask = np.zeros(rows, dtype=bool)
        mask[order[fold::count]] = True
        yield mask


def clock_folds(clock_mhz: Floats, most: int = MAX_CLOCK_FOLDS) -> Iterator[Mask]:
    """Masks that each leave one clock out; `most` clocks, spread evenly, where there are more."""
    clocks = np.unique(clock_mhz)
    chosen = np.unique(np.linspace(0, len(clocks) - 1, min(most, len(clocks))).round().astype(int))
    for clock in clocks[chosen]:
        yield clock_mhz == clock


class Predictor(Protocol):
    """What cross-validation asks of a fitted model; all arguments have shape (n,)."""

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats: ...
    def power_w(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats: ...


def cross_validate(
    table: ProfileTable, folds: Iterable[Mask], fit_fold: Callable[[ProfileTable], Predictor]
) -> OutOfFold:
    """Predictions for each fold's rows by a model fitted to the others; folds too small are skipped."""
    step = np.full(len(table), np.nan)
    power = np.full(len(table), np.nan)
    for held_out in folds:
        try:
            model = fit_fold(table.select(~held_out))
        except TrainingError:
            continue
        unseen = table.select(held_out)
        step[held_out] = model.step_time_s(unseen.clock_mhz, *unseen.load)
        power[held_out] = model.power_w(unseen.clock_mhz, *unseen.load)
    return OutOfFold(step, power)


def scores(table: ProfileTable, predicted: OutOfFold, where: Mask | None = None) -> dict[str, float]:
    """Errors by kind: iterations per second of decode, seconds of prefill, watts."""
    seen = np.isfinite(predicted.step_time_s) & (True if where is None else where)
    decode = seen & (table.decode_batch > 0)
    prefill = seen & (table.decode_batch == 0)
    result = {}
    if decode.sum() >= 2:
        observed_ips, predicted_ips = 1 / table.step_time_s[decode], 1 / predicted.step_time_s[decode]
        spread = float(np.sum((observed_ips - observed_ips.mean()) ** 2))
        result["ips_r2"] = 1 - float(np.sum((observed_ips - predicted_ips) ** 2)) / max(spread, 1e-12)
        result["ips_mae"] = float(np.mean(np.abs(observed_ips - predicted_ips)))
        result["decode_mape"] = _mape(table.step_time_s[decode], predicted.step_time_s[decode])
    if prefill.any():
        result["prefill_mape"] = _mape(table.step_time_s[prefill], predicted.step_time_s[prefill])
    with_power = seen & np.isfinite(table.power_w)
    if with_power.any():
        result["power_mape"] = _mape(table.power_w[with_power], predicted.power_w[with_power])
    large = with_power & (table.decode_batch >= 16)
    if large.any():
        result["power_batch16_mape"] = _mape(table.power_w[large], predicted.power_w[large])
    return result


def _mape(observed: Floats, predicted: Floats) -> float:
    return float(np.mean(np.abs(predicted / observed - 1)))


def bound(table: ProfileTable, fit_fold: Callable[[ProfileTable], Predictor]) -> float:
    """Conformal factor from many small folds.

    With few folds the left-out rows meet models that learnt from much fewer rows than the final one: their
    residuals are larger than its own, and the bound covers more than it says.
    """
    left_out = cross_validate(table, random_folds(len(table), BOUND_FOLDS, seed=1), fit_fold)
    return upper_factor(table.step_time_s / left_out.step_time_s)


def upper_factor(ratios: Floats, coverage: float = COVERAGE) -> float:
    """Split-conformal factor: the (n + 1) coverage-th smallest observed/predicted ratio, >= 1.

    Of n + 1 exchangeable ratios the new one is as likely to have any rank, so the k-th smallest of the n
    covers it with probability k / (n + 1). Between two ranks the factor is interpolated, which covers
    `coverage` itself instead of the next rank's share; where n is too small for it, the largest ratio.
    """
    known = ratios[np.isfinite(ratios)]
    if not len(known):
        raise TrainingError("no point was left out of training: the bound cannot be calibrated")
    return max(float(np.quantile(known, coverage, method="weibull")), 1.0)
