"""A function on a grid of (decode batch, context, prefill) knots, read by multilinear interpolation.

Trees jump between their leaves; read only at the knots and interpolated between them, what they learnt
becomes continuous, and numpy alone can evaluate it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

MAX_KNOTS = 12


def context_tokens(batch: Floats, kv: Floats) -> Floats:
    """Mean KV tokens per decoding sequence; 0 where nothing decodes."""
    return np.where(batch > 0, kv / np.maximum(batch, 1e-9), 0.0)


def knots_of(values: Floats) -> tuple[float, ...]:
    """The distinct values, or quantiles of them when there are more than `MAX_KNOTS`."""
    distinct = np.unique(values)
    if len(distinct) > MAX_KNOTS:
        ranks = np.linspace(0, len(distinct) - 1, MAX_KNOTS).round().astype(int)
        distinct = np.unique(distinct[ranks])
    return tuple(float(value) for value in distinct)


def locate(knots: Floats, values: Floats) -> tuple[Ints, Floats]:
    """Cell index and position 0..1 within it; values outside the knots are clamped to the ends."""
    if len(knots) == 1:
        return np.zeros(values.shape, dtype=np.intp), np.zeros(values.shape)
    cell = np.clip(np.searchsorted(knots, values, side="right") - 1, 0, len(knots) - 2)
    width = knots[cell + 1] - knots[cell]
    return cell, np.clip((values - knots[cell]) / width, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Lattice:
    """`values` has shape (batch knots, context knots, prefill knots, clocks).

    Interpolation is linear in log2(1 + x) of each axis, constant beyond the ends.
    """

    batch: tuple[float, ...]
    context: tuple[float, ...]
    prefill: tuple[float, ...]
    clocks_mhz: tuple[float, ...]
    values: Floats

    def at(self, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        """Values at n loads: shape (n, clocks)."""
        axes = (self.batch, self.context, self.prefill)
        coordinates = (batch, context_tokens(batch, kv), prefill)
        located = [
            locate(np.log2(1.0 + np.array(knots)), np.log2(1.0 + coordinate))
            for knots, coordinate in zip(axes, coordinates, strict=True)
        ]
        return _multilinear(self.values, located)

    def beyond(self, batch: Floats, kv: Floats, prefill: Floats) -> npt.NDArray[np.bool_]:
        """True where the load exceeds what the knots cover."""
        over_batch = batch > self.batch[-1]
        over_context = context_tokens(batch, kv) > self.context[-1]
        return np.asarray(over_batch | over_context | (prefill > self.prefill[-1]))


def _multilinear(values: Floats, located: list[tuple[Ints, Floats]]) -> Floats:
    (i, u), (j, v), (k, w) = located
    i1, j1, k1 = (
        np.minimum(index + 1, size - 1) for index, size in zip((i, j, k), values.shape, strict=False)
    )
    u, v, w = u[:, None], v[:, None], w[:, None]
    low = _plane(values, i, (j, j1, v), (k, k1, w))
    high = _plane(values, i1, (j, j1, v), (k, k1, w))
    return low + u * (high - low)


def _plane(
    values: Floats, i: Ints, second: tuple[Ints, Ints, Floats], third: tuple[Ints, Ints, Floats]
) -> Floats:
    j, j1, v = second
    k, k1, w = third
    first = values[i, j, k] + w * (values[i, j, k1] - values[i, j, k])
    other = values[i, j1, k] + w * (values[i, j1, k1] - values[i, j1, k])
    return np.asarray(first + v * (other - first))
