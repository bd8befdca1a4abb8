"""One model from the telemetry of a fleet: the priors here, the corrections by LightGBM on Dask.

The same law and the same artifact as local training. What differs: the priors are fitted to a sample
(all rows where there are few), each worker bins features from the rows it holds, and errors come from one
held-out fifth instead of ten folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kvwatt.energy import PowerModel
from kvwatt.fitting import BoostOptions, axes_of, fit_power_prior, fit_step_prior, lattice_of
from kvwatt.lattice import Floats
from kvwatt.manifest import Manifest
from kvwatt.profiles import ProfileTable
from kvwatt.throughput import StepModel
from kvwatt.training import MIN_ROWS, OutOfFold, TrainingError, scores, upper_factor
from kvwattd.fleet.telemetry import FEATURES, Frame, Telemetry, labelled, read

CONNECT_S = 10.0
SOCKET_MINUTES = 10  # of silence between workers before LightGBM gives up; its own default is two hours


class FleetError(Exception):
    """The cluster cannot be reached or used."""


def train_fleet(
    scheduler: str, patterns: list[str], hardware: str | None, tp: int | None, created: str
) -> tuple[StepModel, ProfileTable]:
    """Train on the cluster at `scheduler`; the model, and a sample of the rows for later refits.

    Raises FleetError, TelemetryError, TrainingError, OSError.
    """
    try:
        import distributed
        import lightgbm
        import pandas  # noqa: F401 (read_parquet and the workers need it: better told now)
        import pyarrow  # noqa: F401 (see above)
        import sklearn  # noqa: F401 (LightGBM's Dask interface needs it)
    except ImportError as error:
        raise FleetError(f"{error.name} is not installed: pip install 'kvwatt[fleet]'") from error
    try:
        # A default client that never connected would stay, and hang whatever is computed next.
        distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False).close()
        client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=True)
    except (OSError, ValueError) as error:
        raise FleetError(f"no Dask scheduler at {scheduler}: {error}") from error
    with client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            raise FleetError(f"the Dask scheduler at {scheduler} has no workers")
        telemetry = read(patterns, hardware, tp, parts=workers)
        try:
            return _trained(client, telemetry, created), telemetry.sample
        except lightgbm.basic.LightGBMError as error:
            raise FleetError(f"LightGBM on the cluster: {error}") from error


def _trained(client: Any, telemetry: Telemetry, created: str) -> StepModel:  # noqa: ANN401 (untyped library)
    """Once without the held-out rows, for errors and bound, and once with all of them."""
    sample, held = telemetry.sample, telemetry.held
    _check(telemetry)
    trial = _fitted(client, telemetry, telemetry.rows[~telemetry.rows["held"]], sample.select(~held), created)
    unseen = sample.select(held)
    step_s, power_w = (ask(unseen.clock_mhz, *unseen.load) for ask in (trial.step_time_s, trial.power_w))
    errors = {f"fold_{key}": value for key, value in scores(unseen, OutOfFold(step_s, power_w)).items()}
    factor = upper_factor(unseen.step_time_s / step_s)
    model = _fitted(client, telemetry, telemetry.rows, sample, created)
    return replace(model, upper_factor=factor, manifest=replace(model.manifest, errors=errors))


def _check(telemetry: Telemetry) -> None:
    low, high = telemetry.ranges["clock_mhz"]
    measured = int(np.isfinite(telemetry.sample.power_w).sum())
    held = int(telemetry.held.sum())
    for count, told in ((held, "held out of training"), (len(telemetry.held) - held, "to train on")):
        if count < MIN_ROWS:
            found = f"{telemetry.count} busy rows, {count} of them {told}"
            raise TrainingError(f"the telemetry has {found}, at least {MIN_ROWS} are needed")
    if low == high:
        raise TrainingError(f"the telemetry has one clock ({low:g} MHz), at least 2 are needed")
    if measured < MIN_ROWS:
        raise TrainingError(f"the telemetry has power in {measured} rows, at least {MIN_ROWS} are needed")


def _fitted(
    client: Any,  # noqa: ANN401 (untyped library)
    telemetry: Telemetry,
    rows: Frame,
    sample: ProfileTable,
    created: str,
) -> StepModel:
    options = BoostOptions()
    prior = fit_step_prior(sample)
    trees = _boosted(client, rows, "step_time_s", prior.step_time_s, options)
    measured = sample.select(np.isfinite(sample.power_w))
    power_prior = fit_power_prior(measured, prior)

    def watts(clock: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        return power_prior.busy_w(prior, clock, batch, kv, prefill)

    power_trees = _boosted(client, rows[rows["power_w"].notnull()], "power_w", watts, options)
    manifest = Manifest(
        hardware=telemetry.hardware,
        tp=sample.tp,
        rows=telemetry.count,
        ranges=telemetry.ranges,
        vllm_version=telemetry.vllm_version,
        model_name=telemetry.model_name,
        created=created,
    )
    power = PowerModel(power_prior, lattice_of(power_trees, axes_of(measured)))
    correction = lattice_of(trees, axes_of(sample))
    return StepModel(prior, correction, power, 1.1, manifest, trees, power_trees)


def _boosted(
    client: Any,  # noqa: ANN401 (untyped library)
    rows: Frame,
    label: str,
    predicted: Callable[[Floats, Floats, Floats, Floats], Floats],
    options: BoostOptions,
) -> str:
    """Text of a LightGBM model trained data-parallel over the workers: kvwatt.fitting.boost, distributed."""
    import lightgbm

    meta = labelled(rows._meta, label, predicted)
    points = rows.map_partitions(labelled, label, predicted, meta=meta).persist()
    regressor = lightgbm.DaskLGBMRegressor(
        client=client,
        tree_learner="data",
        objective="l2",
        n_estimators=options.rounds,
        num_leaves=options.leaves,
        learning_rate=options.learning_rate,
        min_child_samples=min(options.min_child_samples, max(len(points) // 4, 1)),
        reg_lambda=options.l2,
        min_data_in_bin=1,
        time_out=SOCKET_MINUTES,
        boost_from_average=False,
        deterministic=True,
        force_row_wise=True,
        random_state=1,
        verbosity=-1,
    )
    with warnings.catch_warnings():
        # The number of threads is the workers' own; LightGBM says so even when none was asked for.
        warnings.filterwarnings("ignore", "Parameter n_jobs will be ignored", UserWarning)
        regressor.fit(points[list(FEATURES)], points["log_ratio"])
    text: str = regressor.booster_.model_to_string()
    return text
