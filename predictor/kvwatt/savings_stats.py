"""What control saved, from windows held at driver default: joules, with an interval for few windows.

Wanted is the energy D that the time in control would have used at driver default. A held window i shows the
energy y_i that its work x_i took there. Work is what the clock does not change: seconds, tokens, and the
energy g that the model expects of such a rate of tokens at default (computed alike in both arms, from
counters of tokens alone). The baseline is linear in the work,

    y = x b + e,  Var(e) ~ g          (one column: b = sum y / sum g, the ratio estimator)
    D = x_c b                          x_c: the work of all time in control;   saved = D - energy used

so a bias of the model's level cancels, and its errors of shape end up in e, where they widen the interval.
That the windows were drawn at random makes e of theirs a sample of all e. Its variance is estimated from the
residuals, each freed of its own leverage (HC2), and the quantile is Student's with the degrees of freedom of
Bell and McCaffrey (2002), which count what the few and unequal windows are worth. Sources: Lin (2013), Annals
of Applied Statistics 7(1); Imbens and Kolesar (2016), Review of Economics and Statistics 98(4).

Windows near in time are alike, but each is drawn in a block of its own, and over the draw they are
independent: the variance above holds whatever the autocorrelation. It errs to the wide side, for windows that
are spread by design vary less than those drawn freely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from kvwatt.attainment import Attained

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
LEAST_WINDOWS = 3
TWO_COLUMNS = 5  # from so many windows on, what is used at no load is told apart
WORST_CONDITION = 1e6  # of the columns' products: beyond it they are one column
DEGREES_EXACT = 400  # beyond it the windows are so many that their number alone gives the degrees


@dataclass(frozen=True, slots=True)
class Work:
    """What was done in a stretch of time. `model_j`: what the model expects of it at default; 0: unknown."""

    seconds: float = 0.0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    model_j: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.seconds + other.seconds,
            self.prompt_tokens + other.prompt_tokens,
            self.generation_tokens + other.generation_tokens,
            self.model_j + other.model_j,
        )


@dataclass(frozen=True, slots=True)
class Window:
    """One window held at default, without its warm-up."""

    work: Work
    energy_j: float
    stratum: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Energy saved in the time in control; `low_j` to `high_j` is the interval at `level`."""

    windows: int
    level: float
    degrees: float
    baseline_j: float  # D: at driver default
    used_j: float
    low_j: float
    high_j: float
    slope: tuple[float, ...] = field(default=())  # b, for each of `columns`
    columns: tuple[str, ...] = field(default=())

    @property
    def saved_j(self) -> float:
        return self.baseline_j - self.used_j

    @property
    def half_width_j(self) -> float:
        return (self.high_j - self.low_j) / 2.0

    def beyond(self, saved_j: float) -> float:
        """How far another figure of the saving lies off, in half-widths: above 1 it is outside."""
        return abs(saved_j - self.saved_j) / self.half_width_j if self.half_width_j > 0 else math.inf


def estimate(
    windows: Sequence[Window], controlled: Work, used_j: float, level: float = LEVEL
) -> Estimate | None:
    """The saving over `controlled`, which used `used_j`; None where the windows cannot carry an interval.

    Raises ValueError on figures that are not finite.
    """
    usable = [w for w in windows if w.work.seconds > 0.0]
    if len(usable) < LEAST_WINDOWS or controlled.seconds <= 0.0:
        return None
    y = np.array([w.energy_j for w in usable])
    columns, fit = _columns(usable, controlled), None
    while columns and fit is None:
        x = np.array([[_value(w.work, name) for name in columns] for w in usable])
        at = np.array([_value(controlled, name) for name in columns])
        if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(at).all()):
            raise ValueError("work and energy of windows must be finite")
        fit = _fit(x, y, at)
        # Where the load never changed, what is used at no load cannot be told apart, and need not.
        columns = columns if fit is not None else columns[:-1]
    if fit is None:
        return None
    baseline_j, variance, degrees, slope = fit
    half_j = float(stdtrit(degrees, 0.5 + level / 2.0)) * math.sqrt(variance)
    saved_j = baseline_j - used_j
    return Estimate(
        windows=len(usable),
        level=level,
        degrees=degrees,
        baseline_j=baseline_j,
        used_j=used_j,
        low_j=saved_j - half_j,
        high_j=saved_j + half_j,
        slope=slope,
        columns=columns,
    )


def _columns(windows: Sequence[Window], controlled: Work) -> tuple[str, ...]:
    """What the baseline is linear in: fixed by the number of windows and what is known, not by energies."""
    modelled = controlled.model_j > 0.0 and all(w.work.model_j > 0.0 for w in windows)
    several = len(windows) >= TWO_COLUMNS
    if modelled:
        return ("model_j", "seconds") if several else ("model_j",)
    return ("seconds", "tokens") if several else ("seconds",)


def _value(work: Work, name: str) -> float:
    if name == "tokens":
        return work.prompt_tokens + work.generation_tokens
    return float(getattr(work, name))


def _fit(x: Floats, y: Floats, at: Floats) -> tuple[float, float, float, tuple[float, ...]] | None:
    """Prediction at `at`, its variance, degrees of freedom, slope; None where x does not determine it."""
    scale = np.abs(x).max(axis=0)
    if not (scale > 0).all():
        return None
    x, at = x / scale, at / scale
    root = np.sqrt(x[:, 0])  # the first column is proportional to the variance, and positive
    xw, yw = x / root[:, None], y / root
    gram = xw.T @ xw
    if np.linalg.cond(gram) > WORST_CONDITION:
        return None
    inverse = np.linalg.inv(gram)
    slope = inverse @ xw.T @ yw
    residual = yw - xw @ slope
    weights = xw @ inverse @ at  # the prediction is weights . yw
    hat = xw @ inverse @ xw.T
    free = np.maximum(1.0 - np.diag(hat), 1e-9)
    variance = float(np.sum(weights**2 * residual**2 / free))
    n, p = x.shape
    # What the controlled time itself would have scattered: it is one draw, not the mean of many.
    variance += float(residual @ residual) / (n - p) * float(at[0])
    degrees = _degrees(hat, weights, free) if n <= DEGREES_EXACT else float(n - p)
    return float(at @ slope), variance, degrees, tuple((slope / scale).tolist())


def _degrees(hat: Floats, weights: Floats, free: Floats) -> float:
    """Bell and McCaffrey's: of a sum of squares of dependent residuals, by its first two moments."""
    n = len(weights)
    g = (np.eye(n) - hat) * (weights / np.sqrt(free))[None, :]
    moments = g.T @ g
    return float(np.trace(moments) ** 2 / np.sum(moments**2))


@dataclass(frozen=True, slots=True)
class SloCost:
    """Share of requests that kept a promise, at default and in control; the difference and its interval."""

    default: float
    controlled: float
    low: float
    high: float

    @property
    def cost(self) -> float:
        """Attainment given up by control; negative: gained."""
        return self.default - self.controlled


def slo_cost(windows: Sequence[Attained], controlled: Attained, level: float = LEVEL) -> SloCost | None:
    """Newcombe's interval of the difference, requests of one window counted as alike as they are found to be.

    `windows`: one per held window. Misses come in bursts: the design effect of the windows (variance between
    them over that of single requests, at least 1) divides the requests that both sides are taken to be worth.
    """
    total = sum(w.total for w in windows)
    if total <= 0.0 or controlled.total <= 0.0:
        return None
    default = sum(w.met for w in windows) / total
    effect = _design_effect(windows, default)
    kept = controlled.met / controlled.total
    z = float(stdtrit(max(len(windows) - 1, 1), 0.5 + level / 2.0))
    low_d, high_d = _wilson(default, total / effect, z)
    low_c, high_c = _wilson(kept, controlled.total / effect, z)
    cost = default - kept
    low = cost - math.hypot(default - low_d, high_c - kept)
    high = cost + math.hypot(high_d - default, kept - low_c)
    return SloCost(default, kept, low, high)


def _design_effect(windows: Sequence[Attained], share: float) -> float:
    seen = [w for w in windows if w.total > 0]
    single = share * (1.0 - share) * sum(w.total for w in seen)
    if len(seen) < 2 or single <= 0.0:
        return 1.0
    between = sum((w.met - share * w.total) ** 2 for w in seen) * len(seen) / (len(seen) - 1)
    return max(between / single, 1.0)


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share seen among n."""
    middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half = z / (1.0 + z * z / n) * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)
