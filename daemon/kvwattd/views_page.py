"""What the page draws beside the state: the range of clocks, the course ahead, an observed quantile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isinf

import numpy as np

from kvwatt.projection import FloatArray, Projection, project
from kvwatt.state import EngineShape, Histogram
from kvwattd.api.schemas import ClockRangeView, HistoryView, TrajectoryView
from kvwattd.history import History
from kvwattd.instance import InstanceRuntime

Z, LEVEL = 1.64, 0.90  # one-sided 95 %, so that 5 % are above and 5 % below
PER_DOUBLING = 2  # points of the course: about a dozen for five seconds


def clock_range_view(
    supported_mhz: Sequence[Sequence[int]], permitted_mhz: Sequence[int]
) -> ClockRangeView | None:
    """The range that all GPUs support, from what each does; None where they have no clock in common."""
    common = set.intersection(*(set(clocks) for clocks in supported_mhz)) if supported_mhz else set()
    if not common:
        return None
    return ClockRangeView(
        supported_min_mhz=min(common),
        supported_max_mhz=max(common),
        permitted_min_mhz=min(permitted_mhz, default=None),
        permitted_max_mhz=max(permitted_mhz, default=None),
    )


def quantile_s(histogram: Histogram, level: float) -> float | None:
    """Seconds that a share `level` stayed within, linear inside its bucket.

    None without a request, and where it lies in the unbounded last bucket.
    """
    wanted, low_s, below = level * histogram.count, 0.0, 0.0
    if histogram.count <= 0:
        return None
    for bound_s, count in zip(histogram.bounds, histogram.cumulative, strict=True):
        if count >= wanted and count > below:
            share = (wanted - below) / (count - below)
            return None if isinf(bound_s) else low_s + share * (bound_s - low_s)
        low_s, below = bound_s, count
    return None


def trajectory_view(
    run: InstanceRuntime, now_s: float, unix: Callable[[float], float]
) -> TrajectoryView | None:
    """The projection that decisions rest on, at the step time measured last (else predicted).

    Made when somebody looks, from what the observation holds; changes nothing. None before there is
    traffic and a step time.
    """
    seen, shape = run.observation, run.shape()
    state, traffic = seen.state(), seen.traffic_now(run.slo, now_s)
    step_s = seen.check.measured_itl_s or seen.check.predicted_itl_s
    if state is None or traffic is None or shape is None or not step_s:
        return None
    course = project(state, traffic, shape, step_s, run.params.horizon_s, Z, per_doubling=PER_DOUBLING)
    return course_view(course, shape, unix(state.observed_s))


def course_view(course: Projection, shape: EngineShape, observed_unix_s: float) -> TrajectoryView:
    """As REST shows it; lists are rounded to what can be told apart on a screen."""
    room = float(shape.kv_capacity_tokens)
    kv, kv_high = course.kv_mean_tokens / room, course.kv_upper_tokens / room
    return TrajectoryView(
        observed_unix_s=observed_unix_s,
        level=LEVEL,
        times_s=_rounded(course.times_s, 3),
        batch=_rounded(course.batch_mean, 2),
        batch_low=_rounded(_mirrored(course.batch_mean, course.batch_upper), 2),
        batch_high=_rounded(course.batch_upper, 2),
        kv_usage=_rounded(kv, 5),
        kv_usage_low=_rounded(_mirrored(kv, kv_high), 5),
        kv_usage_high=_rounded(kv_high, 5),
    )


def history_view(history: History, unix: Callable[[float], float]) -> HistoryView:
    """As REST shows it."""
    times_s, columns = history.read()
    return HistoryView.model_validate({"unix_s": [round(unix(t), 3) for t in times_s.tolist()], **columns})


def _mirrored(mean: FloatArray, high: FloatArray) -> FloatArray:
    """The lower end of a band whose upper end is known: the projection's sums are near normal."""
    return np.maximum(2.0 * mean - high, 0.0)


def _rounded(values: FloatArray, digits: int) -> list[float]:
    return [float(value) for value in np.round(values, digits)]
