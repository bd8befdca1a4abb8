"""Simple forecasts beside the filters, and who of them is listened to.

An expert says that the rate to come is that of the last minute, or of the last ten, changed as the daily
pattern has it, and spreads it by how wrong it was before (the quantile of its errors in y = sqrt(rate)). Per
horizon, filters and experts are averaged with the weights of AdaHedge (de Rooij et al., JMLR 15, 2014) on
their pinball losses. That loss is convex, so the average loses over any stretch of time no more than the best
of them plus a regret of about sqrt(L ln 3), L being the best one's own loss; no rate of learning is to be
chosen and no scale to be known.
Until a horizon was judged, the filters alone speak for it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

HORIZONS_S = (30.0, 120.0, 480.0)  # at which everybody is judged, and weighted
LOOK_BACKS_S = (60.0, 600.0)
JUDGED_S = 60.0  # what came is counted in a window of so long, its middle at the horizon
LEVELS = (0.8, 0.95)
ERRORS, LEAST_ERRORS = 240, 10
EXPERTS = 1 + len(LOOK_BACKS_S)  # the filters come first


@dataclass(frozen=True, slots=True)
class Experts:
    """The simple forecasts as of one moment. `errors`: (experts, horizons) sorted errors of y; `weight`:
    (horizons, 1 + experts), the filters' first."""

    points: FloatArray
    errors: tuple[tuple[Sequence[float], ...], ...]
    weight: FloatArray

    def weights_at(self, horizon_s: float) -> FloatArray:
        """(1 + experts,) between the judged horizons."""
        return np.array([np.interp(horizon_s, HORIZONS_S, column) for column in self.weight.T])

    def means(self, change: float) -> FloatArray:
        """Rates (experts,). `change`: of y, that the daily pattern promises."""
        return np.maximum(self.points + change, 0.0) ** 2

    def quantiles(self, level: float, horizon_s: float, change: float, scatter: float) -> FloatArray:
        """Rates (experts,). `scatter`: variance of y that what is asked has more than what was judged."""
        z = NormalDist().inv_cdf(level)
        found = []
        for point, errors in zip(self.points.tolist(), self.errors, strict=True):
            told = [_quantiles(sample, (0.5, level)) for sample in errors]
            middle, upper = (
                float(np.interp(horizon_s, HORIZONS_S, side)) for side in zip(*told, strict=True)
            )
            far = sqrt(max(horizon_s / HORIZONS_S[-1], 1.0))
            wide = (upper - middle) * far
            wide = float(np.copysign(sqrt(max(wide**2 + z**2 * scatter, 0.0)), z))
            found.append(max(point + change + middle + wide, 0.0) ** 2)
        return np.array(found)


class _Errors:
    """The newest ERRORS, also in order of size."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque()
        self.ordered: list[float] = []

    def add(self, error: float) -> None:
        self._newest.append(error)
        insort(self.ordered, error)
        if len(self._newest) > ERRORS:
            del self.ordered[bisect_left(self.ordered, self._newest.popleft())]


class ExpertJudge:
    """Fed with every window of arrivals and with what the filters say; owns errors and weights."""

    def __init__(self) -> None:
        self._windows: deque[tuple[float, float, float]] = deque()  # end, seconds, arrivals
        self._errors = [[_Errors() for _ in HORIZONS_S] for _ in LOOK_BACKS_S]
        self._loss = np.zeros((len(HORIZONS_S), EXPERTS))
        self._gap = np.zeros(len(HORIZONS_S))  # AdaHedge's, which sets its rate of learning
        self._said: deque[tuple[float, int, FloatArray, FloatArray]] = deque()
        self._judged_s = -inf

    def view(self) -> Experts | None:
        """None before anything can be said."""
        points = self._points()
        if points is None or any(len(row[0].ordered) < LEAST_ERRORS for row in self._errors):
            return None
        return Experts(
            points,
            tuple(tuple(tuple(errors.ordered) for errors in row) for row in self._errors),
            np.array([self._weights(i) for i in range(len(HORIZONS_S))]),
        )

    def learn(self, end_s: float, seconds: float, arrivals: float) -> None:
        """A window that ended; what falls due by it is judged."""
        if self._windows and end_s - seconds - self._windows[-1][0] > seconds:
            self._windows.clear()  # a gap: nothing is counted across it
        self._windows.append((end_s, seconds, arrivals))
        while self._windows[0][0] < end_s - max(LOOK_BACKS_S):
            self._windows.popleft()
        while self._said and self._said[0][0] <= end_s:
            due_s, i, points, quantiles = self._said.popleft()
            came = self._rate(due_s, JUDGED_S)
            if came is not None:
                self._judge(i, points, quantiles, came)

    def ask(
        self,
        now_s: float,
        filters: Sequence[Sequence[float]],
        changes: Sequence[float],
        view: Experts | None,
    ) -> None:
        """Note what everybody says now. `filters`: (horizons, LEVELS) rates; `changes`: (horizons,) of y, by
        the daily pattern; `view`: of this moment."""
        points = self._points()
        if points is None:
            return
        for i, horizon_s in enumerate(HORIZONS_S):
            said = np.full((EXPERTS, len(LEVELS)), np.nan)
            said[0] = filters[i]
            if view is not None and all(len(row[i].ordered) >= LEAST_ERRORS for row in self._errors):
                told = [view.quantiles(level, horizon_s, changes[i], 0.0) for level in LEVELS]
                said[1:] = np.stack(told, axis=1)
            self._said.append((now_s + horizon_s + JUDGED_S / 2.0, i, points + changes[i], said))
        self._said = deque(sorted(self._said, key=lambda item: item[0]))

    def _points(self) -> FloatArray | None:
        if not self._windows:
            return None
        end_s = self._windows[-1][0]
        rates = [self._rate(end_s, back_s, least=0.1) for back_s in LOOK_BACKS_S]
        known = [rate for rate in rates if rate is not None]
        return np.sqrt(known) if len(known) == len(rates) else None

    def _rate(self, end_s: float, span_s: float, least: float = 0.8) -> float | None:
        """Of the `span_s` up to `end_s`; None where less than `least` of it was seen."""
        inside = [(s, n) for at, s, n in self._windows if end_s - span_s + s / 2.0 < at <= end_s + s / 2.0]
        seconds = sum(s for s, _ in inside)
        return sum(n for _, n in inside) / seconds if seconds >= least * span_s else None

    def _judge(self, i: int, points: FloatArray, said: FloatArray, came_per_s: float) -> None:
        for row, point in zip(self._errors, points.tolist(), strict=True):
            row[i].add(sqrt(came_per_s) - point)
        if np.isnan(said).any():
            return
        levels = np.array(LEVELS)
        off = came_per_s - said
        losses = np.maximum(levels * off, (levels - 1.0) * off).mean(axis=1)
        mixed, rate = float(self._weights(i) @ losses), self._learning(i)
        soft = float(losses.min()) if rate == inf else self._soft(i, losses, rate)
        self._loss[i] += losses
        self._gap[i] += max(mixed - soft, 0.0)

    def _soft(self, i: int, losses: FloatArray, rate: float) -> float:
        """The mix loss, which AdaHedge compares the average's with; in logarithms, as weights underflow."""
        behind = rate * (self._loss[i] - self._loss[i].min())
        return (_log_sum(-behind) - _log_sum(-behind - rate * losses)) / rate

    def _learning(self, i: int) -> float:
        return float(np.log(EXPERTS) / self._gap[i]) if self._gap[i] > 0.0 else inf

    def _weights(self, i: int) -> FloatArray:
        behind, rate = self._loss[i] - self._loss[i].min(), self._learning(i)
        if not self._loss[i].any():
            return np.asarray(np.eye(EXPERTS)[0], dtype=np.float64)
        raw = (behind <= 0.0).astype(np.float64) if rate == inf else np.exp(-rate * behind)
        return np.asarray(raw / raw.sum())


def _log_sum(values: FloatArray) -> float:
    """Logarithm of the sum of exponentials."""
    most = float(values.max())
    return most + float(np.log(np.exp(values - most).sum()))


def _quantiles(ordered: Sequence[float], levels: Sequence[float]) -> list[float]:
    """Of a sorted sample; zeros of nothing."""
    if not ordered:
        return [0.0] * len(levels)
    found = []
    for level in levels:
        place = level * (len(ordered) - 1)
        low = min(int(place), len(ordered) - 1)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    return found
