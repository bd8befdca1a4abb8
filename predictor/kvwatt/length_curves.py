"""Survival curves of output lengths as rows of one table, read for many requests at once.

Lengths are whole tokens. Cells (edge, next edge] are one token wide up to 64, then 32 to a doubling;
S(l) = P(L > l) is linear within a cell. A request that has produced g tokens and may produce M:

    still running after j more       S(g + j) / S(g), 0 from g + j = M on
    expected remaining               sum over l from g to M - 1 of S(l) / S(g)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_FINE = 64
_PER_DOUBLING = 32
_DOUBLINGS = 12
EDGES: Floats = np.concatenate(
    [np.arange(_FINE), _FINE * 2.0 ** (np.arange(_DOUBLINGS * _PER_DOUBLING + 1) / _PER_DOUBLING)]
)
WIDTHS: Floats = np.diff(EDGES)
CELLS = len(WIDTHS)
LONGEST_TOKENS = float(EDGES[-1])
_TINY = 1e-200


def cell_of(tokens: npt.ArrayLike) -> Ints:
    """The cell (edge, next edge] that holds each length."""
    place = np.searchsorted(EDGES, np.asarray(tokens, dtype=np.float64), side="left") - 1
    return np.asarray(np.clip(place, 0, CELLS - 1), dtype=np.intp)


def _locate(tokens: Floats) -> tuple[Ints, Floats]:
    """Left edge and position (0..1) in its cell; in closed form, a projection asks for hundreds."""
    inside = np.clip(tokens, 0.0, LONGEST_TOKENS)
    octaves = np.log2(np.maximum(inside, _FINE) * (1.0 / _FINE)) * _PER_DOUBLING
    left = np.where(inside < _FINE, inside, _FINE + octaves + 1e-9).astype(np.intp)
    np.minimum(left, CELLS - 1, out=left)
    return left, (inside - EDGES[left]) / WIDTHS[left]


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """`survival` and `tail` (the sum of S from an edge on), both of shape (rows, CELLS + 1)."""

    survival_rows: Floats
    tail_rows: Floats

    @property
    def rows(self) -> int:
        return len(self.survival_rows)

    def survival(self, row: Ints, tokens: Floats) -> Floats:
        """S(tokens) of each row; the arguments broadcast."""
        return self._read(self.survival_rows, row, tokens)

    def alive(self, row: Ints, produced: Floats, ahead: Floats, limit: Floats) -> Floats:
        """P(still running after `ahead` more): row, produced and limit (n,), ahead (n, m) -> (n, m)."""
        now = np.maximum(self.survival(row, produced), _TINY)
        future = produced[:, None] + ahead
        later = np.minimum(self.survival(row[:, None], future) / now[:, None], 1.0)
        later[(future >= limit[:, None])] = 0.0
        return np.where(ahead > 0, later, 1.0)

    def residual_mean(self, row: Ints, produced: Floats, limit: Floats) -> Floats:
        """E[min(L, limit) - g | L > g]; at least one token while a request runs."""
        now = np.maximum(self.survival(row, produced), _TINY)
        beyond = np.where(limit < LONGEST_TOKENS, self._read(self.tail_rows, row, limit), 0.0)
        mean = (self._read(self.tail_rows, row, produced) - beyond) / now
        return np.asarray(np.clip(mean, 1.0, np.maximum(limit - produced, 1.0)))

    def residual_quantile(self, row: Ints, produced: Floats, limit: Floats, q: float) -> Floats:
        """Smallest number of further tokens with P(remaining <= it) >= q; whole tokens."""
        if not 0.0 < q < 1.0:
            raise ValueError(f"q must lie strictly between 0 and 1, got {q}")
        level = self.survival(row, produced) * (1.0 - q)
        table = self.survival_rows[row]
        right = np.argmax(table <= level[:, None] + 1e-15, axis=1)
        right = np.where(table[:, -1] > level, CELLS, np.maximum(right, 1))
        each = np.arange(len(row))
        high, low = table[each, right - 1], table[each, right]
        share = np.clip((high - level) / np.maximum(high - low, _TINY), 0.0, 1.0)
        total = np.ceil(EDGES[right - 1] + share * WIDTHS[right - 1] - 1e-6)
        return np.asarray(np.clip(total - produced, 1.0, np.maximum(limit - produced, 1.0)))

    def _read(self, table: Floats, row: Ints, tokens: Floats) -> Floats:
        left, share = _locate(tokens)
        at = row * (CELLS + 1) + left
        flat = table.ravel()
        low = flat[at]
        return np.asarray(low + share * (flat[at + 1] - low))


def curves_of(hazards: Floats) -> Curves:
    """Curves from hazards per cell (rows, CELLS): the share of those who reach a cell that end in it."""
    alive = np.cumprod(1.0 - np.clip(hazards, 0.0, 1.0), axis=1)
    survival = np.concatenate([np.ones((len(hazards), 1)), alive], axis=1)
    # Whole tokens: the sum of S over a cell's left edges, S being linear between its edges.
    drop = survival[:, :-1] - survival[:, 1:]
    areas = (survival[:, :-1] + survival[:, 1:]) / 2 * WIDTHS + drop / 2
    tail = np.cumsum(areas[:, ::-1], axis=1)[:, ::-1]
    return Curves(survival, np.concatenate([tail, np.zeros((len(hazards), 1))], axis=1))


def hazards_of(survival: Floats) -> Floats:
    """Hazards per cell (rows, CELLS) of survival rows (rows, CELLS + 1)."""
    return np.asarray(1.0 - survival[:, 1:] / np.maximum(survival[:, :-1], _TINY))
