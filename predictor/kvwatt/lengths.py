"""How many tokens will a request still produce? A survival model of lengths, learned online.

Input is the growth of a cumulative histogram of finished requests (vLLM's request_generation_tokens or
request_prompt_tokens). Its buckets are coarse (100, 200, 500, ...), but its sum is exact: within the
buckets the mass is tilted exponentially until the mean agrees. With L the length and S(l) = P(L > l):

    still running after j more, given g so far     S(g + j) / S(g)
    a running request met at random (equilibrium)  P(remaining > j) = integral_j^inf S / E[L]
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kvwatt.state import Histogram

Floats = npt.NDArray[np.float64]

LONGEST_TOKENS = 1 << 20
_FINE = 16  # one-token cells up to here, then eight cells per doubling
_EDGES: Floats = np.concatenate([np.arange(_FINE), _FINE * 2.0 ** (np.arange(16 * 8 + 1) / 8)])
_WIDTHS = np.diff(_EDGES)
_TILT_LIMIT = 40.0


class LengthModel:
    """Exponentially forgets over `memory_requests` finished requests.

    Before the first one every request runs for ever: survival 1, means and quantiles infinite.
    """

    def __init__(self, memory_requests: float = 1000.0) -> None:
        if not (math.isfinite(memory_requests) and memory_requests >= 1):
            raise ValueError(f"memory_requests must be finite and >= 1, got {memory_requests}")
        self._memory_requests = memory_requests
        self._mass = np.zeros(len(_WIDTHS))
        self._survival = np.ones(len(_EDGES))
        self._tail = np.full(len(_EDGES), math.inf)

    @property
    def weight_requests(self) -> float:
        """How many recent requests the model rests on."""
        return float(self._mass.sum())

    @property
    def mean_tokens(self) -> float:
        """E[L]."""
        return float(self._tail[0])

    def update(self, delta: Histogram) -> None:
        """Fold in the requests that finished since the last update; an empty delta changes nothing.

        Raises ValueError on counts or sums that are negative, decreasing or not finite.
        """
        bounds, counts = _checked(delta)
        total = float(counts.sum())
        if total <= 0:
            return
        forget = math.exp(-total / self._memory_requests)
        self._mass = self._mass * forget + _spread(bounds, counts, delta.sum)
        self._survival, self._tail = _integrals(self._mass)

    def survival(self, tokens: Floats | float) -> Floats:
        """S(tokens) = P(L > tokens), for an array of any shape."""
        return np.interp(np.asarray(tokens, dtype=np.float64), _EDGES, self._survival)

    def quantile(self, q: float) -> float:
        """The smallest l with P(L <= l) >= q."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q must lie between 0 and 1, got {q}")
        if self.weight_requests <= 0:
            return math.inf
        cumulative = 1.0 - self._survival
        right = int(np.searchsorted(cumulative, q - 1e-12, side="left"))
        if right == 0:
            return float(_EDGES[0])
        right = min(right, len(_EDGES) - 1)
        low, high = cumulative[right - 1], cumulative[right]
        share = (q - low) / (high - low) if high > low else 1.0
        return float(_EDGES[right - 1] + min(max(share, 0.0), 1.0) * _WIDTHS[right - 1])

    def residual_mean(self, produced_tokens: Floats | float) -> Floats:
        """E[L - g | L > g] for requests that have produced g tokens; 1 where none was ever that long."""
        tokens = np.asarray(produced_tokens, dtype=np.float64)
        alive = self.survival(tokens)
        remaining = self._tail_at(tokens) / np.maximum(alive, 1e-12)
        return np.asarray(np.where(alive > 1e-9, np.maximum(remaining, 1e-9), 1.0))

    def equilibrium_survival(self, tokens: Floats | float) -> Floats:
        """P(a request met while running still runs after `tokens` more), for an array of any shape."""
        ahead = np.asarray(tokens, dtype=np.float64)
        if self.weight_requests <= 0:
            return np.ones(ahead.shape)
        return np.asarray(self._tail_at(ahead) / self._tail[0])

    def _tail_at(self, tokens: Floats) -> Floats:
        """Integral of S from `tokens` to infinity; exact, S being linear within a cell."""
        inside = np.clip(tokens, 0.0, _EDGES[-1])
        cell = np.clip(np.searchsorted(_EDGES, inside, side="right") - 1, 0, len(_WIDTHS) - 1)
        right = cell + 1
        mean = (self.survival(inside) + self._survival[right]) / 2
        return np.asarray(self._tail[right] + mean * (_EDGES[right] - inside))


def _checked(delta: Histogram) -> tuple[Floats, Floats]:
    bounds = np.array(delta.bounds, dtype=np.float64)
    counts = np.diff(np.array(delta.cumulative, dtype=np.float64), prepend=0.0)
    if bounds.shape != counts.shape or not len(bounds):
        raise ValueError(f"histogram has {len(bounds)} bounds and {len(counts)} counts")
    if np.isnan(bounds).any() or np.any(np.diff(bounds) <= 0) or bounds[0] < 0:
        raise ValueError(f"histogram bounds must be ascending and >= 0, got {delta.bounds}")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"histogram counts must be finite and not decrease, got {delta.cumulative}")
    if not math.isfinite(delta.sum) or delta.sum < 0:
        raise ValueError(f"histogram sum must be finite and >= 0, got {delta.sum}")
    return bounds, counts


def _spread(bounds: Floats, counts: Floats, total_tokens: float) -> Floats:
    """Mass per cell: each bucket's count over its cells, tilted so that the mean is the observed one."""
    rows = np.flatnonzero(counts)
    if counts.sum() == 1.0:
        return _single(bounds, int(rows[0]), total_tokens)
    shares, position = zip(*(_bucket(bounds, int(row)) for row in rows), strict=True)
    share, place = np.array(shares), np.array(position)
    weight = counts[rows][:, None]
    middles = (_EDGES[:-1] + _EDGES[1:]) / 2

    def tilted(theta: float) -> Floats:
        leaned = share * np.exp(theta * (place - (theta > 0)))
        return np.asarray((weight * leaned / leaned.sum(axis=1, keepdims=True)).sum(axis=0))

    low, high = -_TILT_LIMIT, _TILT_LIMIT
    for _ in range(22):
        theta = (low + high) / 2
        if float(tilted(theta) @ middles) < total_tokens:
            low = theta
        else:
            high = theta
    return tilted((low + high) / 2)


def _bucket(bounds: Floats, row: int) -> tuple[Floats, Floats]:
    """One bucket's share per cell and the cells' position in it, 0..1.

    Uniform in tokens; in the last, unbounded one falling with the square of the length (Pareto).
    """
    low, high = _bucket_edges(bounds, row)
    middles = (_EDGES[:-1] + _EDGES[1:]) / 2
    overlap = np.clip(np.minimum(_EDGES[1:], high) - np.maximum(_EDGES[:-1], low), 0.0, None)
    if overlap.sum() <= 0:
        overlap[_cell_of(high)] = 1.0
    if math.isinf(bounds[row]):
        overlap /= middles**2
        place = np.log2(np.clip(middles / max(low, 1.0), 1.0, None)) / 4
        return overlap / overlap.sum(), np.clip(place, 0.0, 1.0)
    place = np.clip((middles - low) / max(high - low, 1e-9), 0.0, 1.0)
    return overlap / overlap.sum(), place


def _bucket_edges(bounds: Floats, row: int) -> tuple[float, float]:
    low = float(bounds[row - 1]) if row else 0.0
    low = min(low, LONGEST_TOKENS / 2)
    if math.isinf(bounds[row]):
        return low, float(LONGEST_TOKENS)
    return low, float(min(max(bounds[row], low), LONGEST_TOKENS))


def _single(bounds: Floats, row: int, tokens: float) -> Floats:
    """One request: its length is the sum itself."""
    low, high = _bucket_edges(bounds, row)
    mass = np.zeros(len(_WIDTHS))
    mass[_cell_of(min(max(tokens, low), high))] = 1.0
    return mass


def _cell_of(tokens: float) -> int:
    """The cell (edge, next edge] that holds a length."""
    return int(np.clip(np.searchsorted(_EDGES, tokens, side="left") - 1, 0, len(_WIDTHS) - 1))


def _integrals(mass: Floats) -> tuple[Floats, Floats]:
    """S and the integral of S from each edge on."""
    survival = np.append(np.cumsum(mass[::-1])[::-1], 0.0) / mass.sum()
    areas = (survival[:-1] + survival[1:]) / 2 * _WIDTHS
    tail = np.append(np.cumsum(areas[::-1])[::-1], 0.0)
    return survival, tail
