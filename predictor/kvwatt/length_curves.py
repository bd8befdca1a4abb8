"""Survival curves of output lengths as rows of one table, read for many requests at once.

Lengths are whole tokens. Cells (edge, next edge] are one token wide up to 64, then 32 to a doubling;
S(l) = P(L > l) is linear within a cell. A request that has produced g tokens and may produce M:

    still running after j more       S(g + j) / S(g), 0 from g + j = M on
    expected remaining               sum over l from g to M - 1 of S(l) / S(g)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log2

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Lines = tuple[
    Floats, Floats
]  # of each cell: what its line is at zero tokens, and its slope; (rows x _LINES,)

_FINE = 64
_PER_DOUBLING = 32
_DOUBLINGS = 12
EDGES: Floats = np.concatenate(
    [np.arange(_FINE), _FINE * 2.0 ** (np.arange(_DOUBLINGS * _PER_DOUBLING + 1) / _PER_DOUBLING)]
)
WIDTHS: Floats = np.diff(EDGES)
CELLS = len(WIDTHS)
_LINES = CELLS + 1  # of a row: beyond the last edge a flat one, so that no place has to be clipped
LONGEST_TOKENS = float(EDGES[-1])
_TINY = 1e-200
_AT_ONE = _FINE + 1e-9 - _PER_DOUBLING * log2(_FINE)  # the edge's number is this and 32 log2 of the length


def cell_of(tokens: npt.ArrayLike) -> Ints:
    """The cell (edge, next edge] that holds each length."""
    place = np.searchsorted(EDGES, np.asarray(tokens, dtype=np.float64), side="left") - 1
    return np.asarray(np.clip(place, 0, CELLS - 1), dtype=np.intp)


def _locate(tokens: Floats) -> tuple[Ints, Floats]:
    """Left edge of each length's cell, and the length within the table; in closed form, a decision asks for
    hundreds. Beyond the first cells the edge's number is below the length, and just it at their end."""
    inside = np.minimum(tokens, LONGEST_TOKENS)
    place = np.asarray(np.maximum(inside, float(_FINE)))  # of a single length, too
    np.log2(place, out=place)
    place *= _PER_DOUBLING
    place += _AT_ONE
    np.minimum(place, inside, out=place)
    return place.astype(np.intp), inside


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """`survival` and `tail` (the sum of S from an edge on), both of shape (rows, CELLS + 1)."""

    survival_rows: Floats
    tail_rows: Floats
    _survival: Lines = field(init=False)
    _tail: Lines = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_survival", _lines(self.survival_rows))
        object.__setattr__(self, "_tail", _lines(self.tail_rows))

    @property
    def rows(self) -> int:
        return len(self.survival_rows)

    def survival(self, row: Ints, tokens: Floats) -> Floats:
        """S(tokens) of each row; the arguments broadcast."""
        return _read(self._survival, row * _LINES, np.maximum(tokens, 0.0))

    def alive(self, row: Ints, produced: Floats, ahead: Floats, limit: Floats) -> Floats:
        """P(still running after `ahead` more): row, produced and limit (n,), ahead (n, m) -> (n, m)."""
        now = np.maximum(self.survival(row, produced), _TINY)
        future = produced[:, None] + ahead
        later = np.clip(self.survival(row[:, None], future) / now[:, None], 0.0, 1.0)
        later[(future >= limit[:, None])] = 0.0
        return np.where(ahead > 0, later, 1.0)

    def alive_and_some(
        self, row: Ints, produced: Floats, ahead: Floats, limit: Floats, who: Ints, more: Floats
    ) -> tuple[Floats, Floats]:
        """P(still running after `ahead` (m, n) more) of all n, and after `more` (k,) of those at `who` (k,):
        both in one read."""
        n, size = len(row), len(row) + ahead.size
        tokens = np.empty(size + len(more))
        every, some, first = tokens[n:size].reshape(ahead.shape), tokens[size:], row * _LINES
        tokens[:n] = produced
        np.add(produced, ahead, out=every)
        np.add(produced.take(who), more, out=some)
        cell, inside = _locate(tokens)
        cell_every, cell_some = cell[:size].reshape(len(ahead) + 1, n), cell[size:]
        cell_every += first
        cell_some += first.take(who)
        read = _on_line(self._survival, cell, inside)
        now = np.maximum(read[:n], _TINY)
        alive, alive_some = read[n:size].reshape(ahead.shape), read[size:]
        alive /= now
        alive_some /= now.take(who)
        if n and tokens.item(tokens.argmax()) >= limit.item(limit.argmin()):  # faster than reduce
            # Who is at its limit already still runs after no more tokens.
            end = np.maximum(limit, np.nextafter(produced, np.inf))
            alive[every >= end] = 0.0
            alive_some[some >= end.take(who)] = 0.0
        return alive, alive_some

    def residual_mean(self, row: Ints, produced: Floats, limit: Floats) -> Floats:
        """E[min(L, limit) - g | L > g]; at least one token while a request runs."""
        now = np.maximum(self.survival(row, produced), _TINY)
        beyond = np.where(limit < LONGEST_TOKENS, _read(self._tail, row * _LINES, limit), 0.0)
        mean = (_read(self._tail, row * _LINES, produced) - beyond) / now
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


def _lines(table: Floats) -> Lines:
    slope = np.zeros_like(table)
    slope[:, :-1] = (table[:, 1:] - table[:, :-1]) / WIDTHS
    return np.ravel(table - slope * EDGES), np.ravel(slope)


def _read(lines: Lines, first: Ints, tokens: Floats) -> Floats:
    """Values at `tokens` of the rows whose cells begin at `first`."""
    left, inside = _locate(tokens)
    return _on_line(lines, left + first, inside)


def _on_line(lines: Lines, cell: Ints, tokens: Floats) -> Floats:
    value = lines[1].take(cell)
    value *= tokens
    value += lines[0].take(cell)
    return np.asarray(value)


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
