"""What measuring a point would teach: variance of the log step time before and after, by kriging. Pure.

    log T(x) = log prior(x; c) + r(x)

The prior's coefficients c are uncertain (linearised: features J = d log prior / d log c, so that with a
small r this is a D-optimal design on the prior), and r is a smooth field over log load and log clock:
what the correction has to learn. Both are Gaussian, so variances follow from where points lie alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvwatt.lattice import Floats, context_tokens
from kvwatt.prior import StepPrior, step_time_s

NOISE = 0.015  # of a measured log step time
COEFFICIENT_SPREAD = 0.5  # of a log coefficient before anything is measured
FIELD_SPREAD = 0.06  # of r
_BATCH_OCTAVES, _CONTEXT_OCTAVES, _PREFILL_OCTAVES, _CLOCK_LOG = 2.0, 2.5, 2.0, 0.4
_STEP = 1e-4


@dataclass(frozen=True, slots=True)
class Points:
    """n operating points; all arrays have shape (n,)."""

    clock_mhz: Floats
    batch: Floats
    kv: Floats
    prefill: Floats

    def __len__(self) -> int:
        return len(self.clock_mhz)


def joined(parts: Sequence[Points]) -> Points:
    """All of them, in order."""
    columns = ((p.clock_mhz, p.batch, p.kv, p.prefill) for p in parts)
    return Points(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def posterior(prior: StepPrior, measured: Points, asked: Points) -> Floats:
    """Covariance (n, n) of the log step time at the n asked points, given the measured ones."""
    own = _covariance(prior, asked, asked)
    if not len(measured):
        return own
    cross = _covariance(prior, asked, measured)
    known = _covariance(prior, measured, measured) + NOISE**2 * np.eye(len(measured))
    return np.asarray(own - cross @ np.linalg.solve(known, cross.T))


def reduction(covariance: Floats, chosen: Sequence[int]) -> float:
    """By how much the summed variance would fall if the points `chosen` were measured as well."""
    rows = covariance[:, list(chosen)]
    inner = covariance[np.ix_(list(chosen), list(chosen))] + NOISE**2 * np.eye(len(chosen))
    return float(np.einsum("ij,ji->", rows, np.linalg.solve(inner, rows.T)))


def _covariance(prior: StepPrior, a: Points, b: Points) -> Floats:
    linear = COEFFICIENT_SPREAD**2 * _features(prior, a) @ _features(prior, b).T
    distance2 = ((_place(a)[:, None, :] - _place(b)[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(linear + FIELD_SPREAD**2 * np.exp(-distance2 / 2))


def _features(prior: StepPrior, points: Points) -> Floats:
    """d log T / d log c by differences, shape (n, coefficients)."""
    base = np.asarray(prior.coefficients)
    where = (points.clock_mhz, points.batch, points.kv, points.prefill)
    log_t = np.log(step_time_s(base, *where))
    columns = []
    for index in range(len(base)):
        moved = base.copy()
        moved[index] *= 1.0 + _STEP
        columns.append((np.log(step_time_s(moved, *where)) - log_t) / _STEP)
    return np.stack(columns, axis=1)


def _place(points: Points) -> Floats:
    context = context_tokens(points.batch, points.kv)
    octaves = (
        np.log2(1.0 + points.batch) / _BATCH_OCTAVES,
        np.log2(1.0 + context / 64.0) / _CONTEXT_OCTAVES,
        np.log2(1.0 + points.prefill / 16.0) / _PREFILL_OCTAVES,
        np.log(points.clock_mhz) / _CLOCK_LOG,
    )
    return np.stack(octaves, axis=1)
