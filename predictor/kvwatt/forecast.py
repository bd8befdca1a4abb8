"""Arrival rate of the coming minutes with its uncertainty: level, trend and daily pattern, learned online.

With n arrivals in dt seconds, y = sqrt(n / dt) has a variance of about D / (4 dt) whatever the rate
(Anscombe, Biometrika 35, 1948), D being the index of dispersion. On y runs a local level with a damped
trend (Gardner and McKenzie 1985; as a Kalman filter: Durbin and Koopman, Time Series Analysis by State
Space Methods, ch. 3). How fast the level moves, whether it has a trend and how large D is nobody knows:
a small bank of filters, one per answer, is weighted by how well each predicted of late. The daily pattern
is a table of y by time of day; what counts of it is the change it promises, times a factor learned from
the changes it promised before. The spread is scaled by how past forecasts did. In the end the filters are
averaged with two simple forecasts by how each did (`forecast_experts.py`), for traffic that no filter fits.

Time is an argument. A time without an observation is a gap: uncertainty grows in it, nothing is learned.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import exp, isfinite, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from kvwatt.forecast_experts import HORIZONS_S, JUDGED_S, LEVELS, ExpertJudge, Experts

FloatArray = npt.NDArray[np.float64]

DAY_S = 86400.0
SLOT_S = 600.0
SLOTS = int(DAY_S / SLOT_S)
LEAST_WINDOW_S = 10.0  # arrivals are folded into windows of at least so long
LEVEL_SD = np.array([0.001, 0.003, 0.01, 0.03, 0.1])  # of sqrt(1/s), per sqrt(s)
TREND_SD = np.array([0.0, 1e-5, 1e-4])  # of the slope per s, per sqrt(s)
DISPERSIONS = np.array([1.0, 2.0, 5.0, 15.0, 50.0])
TREND_LIFE_S = 300.0
LEVEL_PENALTY, TREND_PENALTY = 0.5, 1.5  # nats by which a livelier filter must do better
FORGET_S = 1200.0  # of how well each filter did
FIRST_CHECKS, CHECK_MEMORY = 5.0, 60.0  # the spread of the filters counts as so many at first
LARGEST_VARIANCE = 4.0  # of the level, relative to the square of 1 + level


@dataclass(frozen=True, slots=True)
class RateForecast:
    """Predictive distribution of the arrival rate as of `made_s`; immutable, asked for any horizon."""

    made_s: float
    age_s: float  # since the last observation ended
    level: FloatArray  # per filter: y, its slope, their covariance, weight
    slope: FloatArray
    var_level: FloatArray
    cov: FloatArray
    var_slope: FloatArray
    weight: FloatArray
    level_q: FloatArray
    slope_q: FloatArray
    dispersion: float
    scale: tuple[tuple[float, ...], tuple[float, ...]]  # of the spread below and above, at HORIZONS_S
    day: FloatArray | None  # promised change of y is read from here
    day_factor: float
    experts: Experts | None = None  # averaged with the filters

    def mean_per_s(self, horizon_s: float) -> float:
        """Expected rate of arrivals per second `horizon_s` from now."""
        mean, variance = self._moments(horizon_s)
        own = max(mean, 0.0) ** 2 + variance
        if self.experts is None:
            return own
        said = np.concatenate(([own], self.experts.means(self._daily(horizon_s))))
        return float(self.experts.weights_at(self.age_s + horizon_s) @ said)

    def quantile_per_s(self, level: float, horizon_s: float, window_s: float | None = None) -> float:
        """Rate that the traffic is below with probability `level`, `horizon_s` from now.

        With `window_s`: of what is counted in a window of so many seconds, its own scatter included.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
        own = self.filters_per_s(level, horizon_s, window_s)
        if self.experts is None:
            return own
        ahead_s = self.age_s + horizon_s
        per_window = 1.0 / window_s if window_s is not None else 0.0
        scatter = self.dispersion / 4.0 * (per_window - 1.0 / JUDGED_S)
        said = np.concatenate(
            ([own], self.experts.quantiles(level, ahead_s, self._daily(horizon_s), scatter))
        )
        return float(self.experts.weights_at(ahead_s) @ said)

    def cautious_per_s(self, level: float, horizon_s: float) -> float:
        """What capacity is planned for: the higher of filters and average.

        The average is the better forecast by its pinball loss, but looks back a minute, and a step that is
        seen a minute later costs more than a member too many (docs/instances-model.md)."""
        return max(self.filters_per_s(level, horizon_s), self.quantile_per_s(level, horizon_s))

    def filters_per_s(self, level: float, horizon_s: float, window_s: float | None = None) -> float:
        """As `quantile_per_s`, by the filters alone."""
        mean, variance = self._moments(horizon_s)
        if window_s is not None:
            variance += self.dispersion / (4.0 * window_s)
        spread = sqrt(variance) * float(np.interp(horizon_s, HORIZONS_S, self.scale[level > 0.5]))
        return max(mean + NormalDist().inv_cdf(level) * spread, 0.0) ** 2

    def _moments(self, horizon_s: float) -> tuple[float, float]:
        """Mean and variance of y: the mixture's first two moments."""
        if not (isfinite(horizon_s) and horizon_s >= 0.0):
            raise ValueError(f"horizon_s must be finite and >= 0, got {horizon_s}")
        ahead = self.age_s + horizon_s
        reach = TREND_LIFE_S * (1.0 - exp(-ahead / TREND_LIFE_S))
        means = self.level + reach * self.slope
        moved = self.var_level + 2.0 * reach * self.cov + reach**2 * self.var_slope
        variances = moved + ahead * self.level_q + ahead * reach**2 / 3.0 * self.slope_q
        mean = float(self.weight @ means)
        variance = float(self.weight @ (variances + (means - mean) ** 2))
        mean += self._daily(horizon_s)
        return mean, min(variance, LARGEST_VARIANCE * (1.0 + abs(mean)) ** 2)

    def _daily(self, horizon_s: float) -> float:
        """Change of y that the daily pattern promises, as far as it kept its promises."""
        return self.day_factor * promised(self.day, self.made_s - self.age_s, self.age_s + horizon_s)


class RateLearner:
    """Learns from counts of arrivals; `forecast` changes nothing. State: 75 filters and 144 numbers."""

    def __init__(self) -> None:
        grid = np.meshgrid(LEVEL_SD**2, TREND_SD**2, DISPERSIONS, indexing="ij")
        self._level_q, self._slope_q, self._noise = (axis.ravel() for axis in grid)
        n = len(self._noise)
        places = np.meshgrid(*(np.arange(len(a)) for a in (LEVEL_SD, TREND_SD, DISPERSIONS)), indexing="ij")
        self._prior = -(LEVEL_PENALTY * places[0] + TREND_PENALTY * places[1]).ravel()
        self._log_weight = np.zeros(n)
        self._level, self._slope = np.zeros(n), np.zeros(n)
        self._var_level, self._cov, self._var_slope = np.full(n, 1e6), np.zeros(n), np.zeros(n)
        self._seen_s: float | None = None  # end of the last window
        self._open: tuple[float, float, float] | None = None  # start, seconds, arrivals
        self._day = np.full(SLOTS, np.nan)
        self._slot: tuple[int, float, float] | None = None  # number, sum of y x dt, seconds
        self._last_slot: tuple[int, float] | None = None  # number and mean y of the slot before
        self._day_before = float("nan")  # what the table said of it
        self._day_xy, self._day_xx = 0.0, 0.2
        self._checks: deque[tuple[float, int, float, float, float]] = deque()
        self._square = np.ones((2, len(HORIZONS_S)))  # of errors below and above, relative to the spread
        self._told = np.full((2, len(HORIZONS_S)), FIRST_CHECKS)
        self._checked_s = -np.inf
        self._judge = ExpertJudge()

    def observe(self, start_s: float, dt_s: float, arrivals: float) -> None:
        """`arrivals` came in the `dt_s` seconds from `start_s`. Raises ValueError for nonsense.

        What is not told about is not known: leave the times out in which telemetry was."""
        if not (isfinite(start_s) and isfinite(dt_s) and dt_s > 0.0):
            raise ValueError(f"start_s and dt_s must be finite and dt_s > 0, got {start_s} and {dt_s}")
        if not (isfinite(arrivals) and arrivals >= 0.0):
            raise ValueError(f"arrivals must be finite and >= 0, got {arrivals}")
        begun_s, seconds, count = self._open or (start_s, 0.0, 0.0)
        if start_s - (begun_s + seconds) > dt_s:  # a gap: the window before it is closed as it is
            self._close(begun_s, seconds, count)
            begun_s, seconds, count = start_s, 0.0, 0.0
        seconds, count = seconds + dt_s, count + arrivals
        self._open = (begun_s, seconds, count)
        if seconds >= LEAST_WINDOW_S - 1e-6:
            self._close(begun_s, seconds, count)
            self._open = None

    def forecast(self, now_s: float) -> RateForecast | None:
        """What is expected from `now_s` on; None before the first window."""
        if self._seen_s is None:
            return None
        held = self._log_weight + self._prior
        weight = np.exp(held - held.max())
        weight /= weight.sum()
        return RateForecast(
            made_s=now_s,
            age_s=max(now_s - self._seen_s, 0.0),
            level=self._level.copy(),
            slope=self._slope.copy(),
            var_level=self._var_level.copy(),
            cov=self._cov.copy(),
            var_slope=self._var_slope.copy(),
            weight=weight,
            level_q=self._level_q,
            slope_q=self._slope_q,
            dispersion=float(weight @ self._noise),
            scale=self._scale(),
            day=self._day.copy() if np.isfinite(self._day).sum() > SLOTS // 2 else None,
            day_factor=self._day_factor,
            experts=self._judge.view(),
        )

    def _scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        below, above = np.sqrt(np.clip(self._square, 0.25, 9.0)).tolist()
        return tuple(below), tuple(above)

    @property
    def _day_factor(self) -> float:
        return min(max(self._day_xy / self._day_xx, 0.0), 1.0)

    def _close(self, begun_s: float, seconds: float, count: float) -> None:
        if seconds <= 0.0:
            return
        y, end_s = sqrt(count / seconds), begun_s + seconds
        self._judge.learn(end_s, seconds, count)
        self._check(end_s, seconds, y)
        self._move(end_s)
        self._fold(y, seconds)
        self._learn_day(begun_s, y, seconds)
        self._ask_checks(end_s)

    def _move(self, end_s: float) -> None:
        """Time passes: levels drift along their slopes, slopes fade, uncertainty grows."""
        past_s = end_s - self._seen_s if self._seen_s is not None else 0.0
        self._seen_s = end_s
        if past_s <= 0.0:
            return
        fade = exp(-past_s / TREND_LIFE_S)
        reach = TREND_LIFE_S * (1.0 - fade)
        self._level = self._level + reach * self._slope
        self._slope = self._slope * fade
        v, c, w = self._var_level, self._cov, self._var_slope
        wandered = past_s * self._slope_q  # of the slope; what of it reached the level is a third and a half
        grown = v + 2.0 * reach * c + reach**2 * w + past_s * self._level_q + reach**2 / 3.0 * wandered
        self._var_level = np.minimum(grown, 1e6)
        self._var_slope = fade**2 * w + wandered
        cov = fade * (c + reach * w) + reach / 2.0 * wandered
        # Rounding and the limit above must not make the two more than wholly correlated.
        most = np.sqrt(self._var_level * self._var_slope)
        self._cov = np.clip(cov, -most, most)

    def _fold(self, y: float, seconds: float) -> None:
        """Kalman's update, and how likely each filter held what came."""
        noise = self._noise / (4.0 * seconds)
        total = self._var_level + noise
        off = y - self._level
        keep = exp(-seconds / FORGET_S)
        self._log_weight = keep * self._log_weight - 0.5 * (np.log(total) + off**2 / total)
        self._log_weight -= self._log_weight.max()
        gain, gain_slope = self._var_level / total, self._cov / total
        self._level = self._level + gain * off
        self._slope = self._slope + gain_slope * off
        self._var_slope = self._var_slope - gain_slope * self._cov
        self._cov = self._cov * (1.0 - gain)
        self._var_level = self._var_level * (1.0 - gain)

    def _learn_day(self, begun_s: float, y: float, seconds: float) -> None:
        number = int(begun_s // SLOT_S)
        if self._slot is not None and self._slot[0] != number:
            self._end_slot(*self._slot)
            self._slot = None
        _, total, so_far = self._slot or (number, 0.0, 0.0)
        self._slot = (number, total + y * seconds, so_far + seconds)

    def _end_slot(self, number: int, total: float, seconds: float) -> None:
        """What the table promised from the slot before to this one, and what came; then the table learns."""
        place = number % SLOTS
        mean = total / seconds
        if seconds < SLOT_S / 4:
            return
        last = self._last_slot
        if last is not None and last[0] == number - 1:
            said, came = float(self._day[place]) - self._day_before, mean - last[1]
            if isfinite(said):  # the table knew both slots before
                self._day_xy = 0.99 * self._day_xy + said * came
                self._day_xx = 0.99 * self._day_xx + said**2
        self._last_slot = (number, mean)
        self._day_before = float(self._day[place])
        known = self._day[place]
        self._day[place] = mean if not np.isfinite(known) else known + 0.4 * (mean - known)

    def _ask_checks(self, end_s: float) -> None:
        made = self.forecast(end_s)
        if made is None:
            return
        said = [[made.filters_per_s(level, h, JUDGED_S) for level in LEVELS] for h in HORIZONS_S]
        self._judge.ask(end_s, said, [made._daily(h) for h in HORIZONS_S], made.experts)
        if end_s - self._checked_s < 30.0:
            return
        self._checked_s = end_s
        for i, horizon_s in enumerate(HORIZONS_S):
            mean, variance = made._moments(horizon_s)
            self._checks.append((end_s + horizon_s, i, mean, variance, made.dispersion))

    def _check(self, end_s: float, seconds: float, y: float) -> None:
        """Forecasts that fall due in the window are held against it."""
        open_checks: deque[tuple[float, int, float, float, float]] = deque()
        for due_s, i, mean, variance, dispersion in self._checks:
            if due_s > end_s:
                open_checks.append((due_s, i, mean, variance, dispersion))
            elif due_s > end_s - seconds:
                square = (y - mean) ** 2 / (variance + dispersion / (4.0 * seconds))
                side = int(y > mean)
                self._told[side, i] = min(self._told[side, i] + 1.0, CHECK_MEMORY)
                self._square[side, i] += (min(square, 25.0) - self._square[side, i]) / self._told[side, i]
        self._checks = open_checks


def promised(day: FloatArray | None, now_s: float, ahead_s: float) -> float:
    """Change of y over `ahead_s` by the daily table, linear between the middles of its slots."""
    if day is None:
        return 0.0
    middles = (np.arange(SLOTS) + 0.5) * SLOT_S
    known = np.isfinite(day)
    times = np.array([now_s, now_s + ahead_s]) % DAY_S
    then = np.interp(times, middles[known], day[known], period=DAY_S)
    return float(then[1] - then[0])
