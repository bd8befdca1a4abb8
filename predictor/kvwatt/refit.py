"""Champion and challenger: a model refitted to what was served, and the test it has to pass.

    challenger = fit(profile x what all samples have in common, plus the samples seen before the newest)
    d_i        = |log(champion_i / observed_i)| - |log(challenger_i / observed_i)|   on the newest samples
    serves if    mean(d) - t se(d) > margin, with se over blocks of consecutive samples

Neither model has seen the newest samples. Neighbours in time are alike, hence the blocks. One clock
teaches nothing about another: what all samples have in common is therefore taken to hold for the whole
profile, or a clock that was never visited would look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvwatt.lattice import Floats
from kvwatt.profiles import ProfileTable
from kvwatt.samples import Sample
from kvwatt.throughput import StepModel
from kvwatt.training import Origin, TrainingError, fit, upper_factor

MIN_NEWEST = 30
NEWEST_SHARE = 0.3
MIN_TRAINING = 30
BLOCKS = 10
T_BLOCKS = 2.262  # Student's t, 9 degrees of freedom, one-sided 97.5 %
MARGIN = 0.002  # and at least this share of the champion's error:
MARGIN_SHARE = 0.05
POWER_TOLERANCE = 0.01
_COMMON_LIMIT = 2.0
_PROMPT_SHARE = 0.4  # of a step: beyond it, what is left for decoding is more model than measurement
_PROMPT_SHARE_POWER = 0.1
_ODD = 2.0
_ROWS_PER_CELL = 3  # as many as a leaf of the correction needs
_MAX_FACTOR = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the challenger serves; errors are means of |log(predicted / observed)| on the newest."""

    promote: bool
    reason: str
    samples: int = 0
    champion_error: float | None = None
    challenger_error: float | None = None
    gain_low: float | None = None  # lower bound of the difference


@dataclass(frozen=True, slots=True)
class Refit:
    """A challenger, where there was enough to fit one, and what became of it."""

    verdict: Verdict
    challenger: StepModel | None = None
    trained_through: int = 0  # number of the newest sample that the challenger has seen


@dataclass(frozen=True, slots=True)
class Columns:
    """Samples as columns of equal length."""

    clock_mhz: Floats
    batch: Floats
    kv: Floats
    chunk: Floats
    chunks_per_step: Floats
    itl_s: Floats
    power_w: Floats


def columns_of(samples: Sequence[Sample]) -> Columns:
    """Samples turned sideways."""
    names = (
        "clock_mhz",
        "decode_batch",
        "kv_tokens",
        "chunk_tokens",
        "chunks_per_step",
        "itl_s",
        "power_w",
    )
    return Columns(*(np.array([getattr(s, name) for s in samples], dtype=np.float64) for name in names))


def prompt_extra_s(model: StepModel, c: Columns) -> Floats:
    """What prompts add to a step on average, by the model."""
    decode_s = model.step_time_s(c.clock_mhz, c.batch, c.kv, 0.0)
    mixed_s = model.step_time_s(c.clock_mhz, c.batch, c.kv, c.chunk)
    return np.asarray(np.maximum(mixed_s - decode_s, 0.0) * c.chunks_per_step)


def expected_itl_s(model: StepModel, c: Columns) -> Floats:
    """Inter-token latency the model expects for each sample, as the daemon itself computes it."""
    return model.step_time_s(c.clock_mhz, c.batch, c.kv, 0.0) + prompt_extra_s(model, c)


def split(samples: Sequence[Sample], seen_through: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on and the newest ones to compare on, none of them seen by the champion."""
    ordered = sorted(samples, key=lambda sample: sample.number)
    unseen = [sample for sample in ordered if sample.number > seen_through]
    newest = unseen[-max(round(len(unseen) * NEWEST_SHARE), MIN_NEWEST) :]
    first = newest[0].number if newest else 0
    return [sample for sample in ordered if sample.number < first], newest


def refit(
    profile: ProfileTable,
    shipped: StepModel,
    champion: StepModel,
    samples: Sequence[Sample],
    seen_through: int,
) -> Refit:
    """Fit a challenger and judge it. `seen_through` is the newest sample that the champion was fitted to."""
    training, newest = split(samples, seen_through)
    if len(newest) < MIN_NEWEST or len(training) < MIN_TRAINING:
        told = f"{len(training)} samples to train on and {len(newest)} to compare on"
        return Refit(
            Verdict(False, f"too few: {told}, {MIN_TRAINING} and {MIN_NEWEST} are needed", len(newest))
        )
    try:
        challenger = fit_challenger(profile, shipped, training)
    except TrainingError as error:
        return Refit(Verdict(False, f"no challenger: {error}", len(newest)))
    verdict = judge(champion, challenger, columns_of(newest))
    ready = _bounded(challenger, shipped, columns_of(newest))
    return Refit(verdict, ready, training[-1].number)


def fit_challenger(profile: ProfileTable, shipped: StepModel, training: Sequence[Sample]) -> StepModel:
    """A model of the shipped profile and the samples; it holds where the shipped one was measured."""
    manifest = shipped.manifest
    origin = Origin(manifest.hardware, manifest.vllm_version, manifest.model_name, manifest.created)
    table = training_table(profile, shipped, columns_of(training))
    model = fit(table, origin)
    return replace(model, manifest=replace(model.manifest, ranges=manifest.ranges, errors=manifest.errors))


def training_table(profile: ProfileTable, shipped: StepModel, c: Columns) -> ProfileTable:
    """The profile, moved by what all samples have in common, and the samples as decode rows."""
    slower = _common(c.itl_s / expected_itl_s(shipped, c))
    extra_s = prompt_extra_s(shipped, c) * max(slower, 1.0)
    decode_s, share = c.itl_s - extra_s, extra_s / c.itl_s
    power_w = np.where(share <= _PROMPT_SHARE_POWER, c.power_w, np.nan)
    hungrier = _common(power_w / shipped.power_w(c.clock_mhz, c.batch, c.kv, 0.0))
    # A host that was starved for a while made single points several times slower: no law of the GPU.
    odd = np.abs(np.log(c.itl_s / (expected_itl_s(shipped, c) * slower))) > np.log(_ODD)
    usable = (share <= _PROMPT_SHARE) & ~odd
    columns = np.stack([c.clock_mhz, c.batch, c.kv, decode_s, power_w])[:, usable]
    rows = _cell_means(columns)
    none = np.zeros(rows.shape[1])
    # That decoding became faster says nothing about prompts: those are not given credit.
    factor = np.where(profile.prefill_tokens > 0, max(slower, 1.0), slower)
    return ProfileTable(
        np.concatenate([profile.clock_mhz, rows[0]]),
        np.concatenate([profile.decode_batch, rows[1]]),
        np.concatenate([profile.kv_tokens, rows[2]]),
        np.concatenate([profile.prefill_tokens, none]),
        np.concatenate([profile.step_time_s * factor, rows[3]]),
        np.concatenate([profile.power_w * hungrier, rows[4]]),
        profile.tp,
        profile.idle_clock_mhz,
        profile.idle_power_w,
    )


def _common(ratios: Floats) -> float:
    known = ratios[np.isfinite(ratios) & (ratios > 0)]
    if len(known) < MIN_TRAINING:
        return 1.0
    return float(np.clip(np.median(known), 1.0 / _COMMON_LIMIT, _COMMON_LIMIT))


def _cell_means(columns: Floats) -> Floats:
    """Averages over cells of similar clock and batch: noise of single samples must not be learned."""
    clock_step, batch_step = np.log(1.02), np.log(2.0) / 4.0
    keys = np.stack(
        [np.round(np.log(columns[0]) / clock_step), np.round(np.log(columns[1]) / batch_step)]
    ).astype(np.int64)
    _, cell = np.unique(keys, axis=1, return_inverse=True)
    means: list[Floats] = []
    for number in range(int(cell.max(initial=-1)) + 1):
        members = np.flatnonzero(cell.ravel() == number)
        groups = np.array_split(members, min(_ROWS_PER_CELL, len(members)))
        means.extend(_mean(columns[:, group]) for group in groups)
    return np.stack(means, axis=1) if means else np.zeros((len(columns), 0))


def _mean(columns: Floats) -> Floats:
    """Mean of each row; of the last one, power, over what is known of it."""
    known = columns[-1][np.isfinite(columns[-1])]
    means = columns.mean(axis=1)
    means[-1] = known.mean() if len(known) else np.nan
    return np.asarray(means)


def judge(champion: StepModel, challenger: StepModel, newest: Columns) -> Verdict:
    """The paired test on step time, and no loss on power."""
    verdict = compare(newest.itl_s, expected_itl_s(champion, newest), expected_itl_s(challenger, newest))
    if not verdict.promote:
        return verdict
    quiet = np.isfinite(newest.power_w) & (
        prompt_extra_s(champion, newest) <= _PROMPT_SHARE_POWER * newest.itl_s
    )
    if quiet.sum() < MIN_NEWEST:
        return verdict
    load = (newest.clock_mhz[quiet], newest.batch[quiet], newest.kv[quiet], 0.0)
    watts = newest.power_w[quiet]
    before, after = (_errors(model.power_w(*load), watts).mean() for model in (champion, challenger))
    if after > before + POWER_TOLERANCE:
        reason = f"power is worse: {100 * after:.2f} % off, {100 * before:.2f} % before"
        return replace(verdict, promote=False, reason=reason)
    return verdict


def compare(observed: Floats, champion: Floats, challenger: Floats) -> Verdict:
    """The paired test of the module text over predictions of the same quantity, oldest first.

    Anything that is not finite and positive counts against the challenger: it is not promoted.
    """
    count = len(observed)
    if count < MIN_NEWEST:
        return Verdict(False, f"too few: {count} samples to compare on, {MIN_NEWEST} are needed", count)
    values = np.stack([observed, champion, challenger])
    if not (np.isfinite(values).all() and (values > 0).all()):
        return Verdict(False, "observations or predictions are not finite and positive", count)
    before, after = _errors(champion, observed), _errors(challenger, observed)
    blocks = np.array([block.mean() for block in np.array_split(before - after, BLOCKS)])
    low = float(blocks.mean() - T_BLOCKS * blocks.std(ddof=1) / np.sqrt(BLOCKS))
    margin = max(MARGIN, MARGIN_SHARE * float(before.mean()))
    better = low > margin
    told = f"{100 * after.mean():.2f} % off, champion {100 * before.mean():.2f} %, {count} samples"
    reason = f"better: {told}" if better else f"not better by the margin: {told}"
    return Verdict(better, reason, count, float(before.mean()), float(after.mean()), low)


def _errors(predicted: Floats, observed: Floats) -> Floats:
    return np.asarray(np.abs(np.log(predicted / observed)))


def _bounded(challenger: StepModel, shipped: StepModel, newest: Columns) -> StepModel:
    """Its bound holds on the newest samples and is never tighter than that of the shipped model."""
    factor = upper_factor(newest.itl_s / expected_itl_s(challenger, newest))
    return replace(challenger, upper_factor=min(max(factor, shipped.upper_factor), _MAX_FACTOR))
