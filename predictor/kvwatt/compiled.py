"""The model as an exact table over loads and the clocks of one engine, read in microseconds.

The grid has axes (decode batch, context per sequence, prefill tokens). With the context as an axis, KV
tokens = batch x context is bilinear, so that the interpolation of the KV term is exact; the smooth
maximum of the prior is convex, so that what interpolation adds elsewhere is on the slow side.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvwatt.lattice import Floats, context_tokens
from kvwatt.state import EngineShape
from kvwatt.throughput import StepModel

Table = npt.NDArray[np.float32]

_BATCHES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024)
_CONTEXTS = (0, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_PREFILLS = (0, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
_LONGEST_CONTEXT = 131072


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """`step_s` and `busy_w` have shape (batch x context x prefill, clocks)."""

    clocks_mhz: tuple[int, ...]
    upper_factor: float
    axes: tuple[Floats, Floats, Floats]
    step_s: Table
    busy_w: Table
    idle_w: Floats
    _lines: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Python looks one number up in a tuple in a fraction of the time it takes in an array.
        object.__setattr__(self, "_lines", tuple(tuple(axis.tolist()) for axis in self.axes))

    def step_time_s(self, decode_batch: Floats, kv_tokens: Floats, prefill_tokens: Floats) -> Floats:
        """Seconds of a step at n loads and all clocks: (n, clocks), non-increasing along the clocks.

        Beyond the grid the last slope goes on upwards, never downwards. Raises ValueError on loads that
        are negative or not finite.
        """
        corners, weights, outside = self._locate(decode_batch, kv_tokens, prefill_tokens)
        inside = _blend(self.step_s, corners, np.clip(weights, 0.0, 1.0))
        if not outside:
            return inside
        onward = np.maximum(inside, _blend(self.step_s, corners, weights))
        return np.asarray(np.maximum.accumulate(onward[:, ::-1], axis=1)[:, ::-1])

    def power_w(self, decode_batch: Floats, kv_tokens: Floats, prefill_tokens: Floats) -> Floats:
        """Watts while stepping at n loads and all clocks: (n, clocks); constant beyond the grid."""
        corners, weights, _ = self._locate(decode_batch, kv_tokens, prefill_tokens)
        return _blend(self.busy_w, corners, np.clip(weights, 0.0, 1.0))

    def step_and_power(
        self, decode_batch: Floats, kv_tokens: Floats, prefill_tokens: Floats
    ) -> tuple[Floats, Floats]:
        """`step_time_s` and `power_w` of the same loads, in about the time of one of them."""
        corners, weights, outside = self._locate(decode_batch, kv_tokens, prefill_tokens)
        if outside:
            loads = (decode_batch, kv_tokens, prefill_tokens)
            return CompiledModel.step_time_s(self, *loads), CompiledModel.power_w(self, *loads)
        shares = _shares(weights)
        return _mix(self.step_s, corners, shares), _mix(self.busy_w, corners, shares)

    def with_prompts(
        self, decode_batch: float, kv_tokens: float, prefills: tuple[float, ...]
    ) -> tuple[Floats, Floats]:
        """`step_and_power` of one batch with each of so many prompt tokens beside it: (prefills, clocks)."""
        corners, shares = self._corners(decode_batch, kv_tokens, prefills)
        if corners is None:
            rows = np.full((2, len(prefills)), ((decode_batch,), (kv_tokens,)))
            return CompiledModel.step_and_power(self, rows[0], rows[1], np.array(prefills))
        step_s = shares @ self.step_s.take(corners, axis=0)
        busy_w = shares @ self.busy_w.take(corners, axis=0)
        return step_s.astype(np.float64), busy_w.astype(np.float64)

    def _corners(
        self, batch: float, kv: float, prefills: tuple[float, ...]
    ) -> tuple[npt.NDArray[np.intp] | None, Table]:
        """Rows of the tables around these loads, and of which each load is which share: (prefills, rows).

        None beyond the grid, or for a load that is no number."""
        batches, contexts, chunks = self._lines
        i, u = _cell(batches, batch)
        j, v = _cell(contexts, kv / batch if batch > 0.0 else 0.0)
        found = [_cell(chunks, prefill) for prefill in prefills]
        for _, place in ((i, u), (j, v), *found):
            if not 0.0 <= place <= 1.0:
                return None, np.empty(0, dtype=np.float32)
        corners, own = _around(i, j, tuple([k for k, _ in found]), len(contexts), len(chunks))
        planes = ((1.0 - u) * (1.0 - v), (1.0 - u) * v, u * (1.0 - v), u * v)
        shares = np.zeros(len(found) * len(corners), dtype=np.float32)
        shares[own] = [plane * side for _, w in found for plane in planes for side in (1.0 - w, w)]
        return corners, shares.reshape(len(found), -1)

    def idle_power_w(self) -> Floats:
        """Watts at each clock while no request runs."""
        return self.idle_w

    def _locate(
        self, batch: Floats, kv: Floats, prefill: Floats
    ) -> tuple[npt.NDArray[np.intp], Floats, bool]:
        """Index of each load's lower corner (n,), the eight corner offsets added, and its weights (n, 3)."""
        loads = np.array((batch, context_tokens(batch, kv), prefill), dtype=np.float64)
        if not (loads.min(initial=0.0) >= 0.0 and loads.max(initial=0.0) < np.inf):
            raise ValueError("loads must be finite and >= 0")
        sizes = [len(axis) for axis in self.axes]
        cells = np.empty(loads.shape, dtype=np.intp)
        weights = np.empty(loads.shape)
        for row, axis in enumerate(self.axes):
            cell = axis.searchsorted(loads[row], side="right") - 1
            np.minimum(cell, len(axis) - 2, out=cell)
            low = axis[cell]
            weights[row] = (loads[row] - low) / (axis[cell + 1] - low)
            cells[row] = cell
        base = (cells[0] * sizes[1] + cells[1]) * sizes[2] + cells[2]
        first, second = sizes[1] * sizes[2], sizes[2]
        offsets = np.array([0, 1, second, second + 1, first, first + 1, first + second, first + second + 1])
        return base[:, None] + offsets, weights.T, bool((weights > 1.0).any())


@lru_cache(maxsize=512)
def _around(
    i: int, j: int, cells: tuple[int, ...], contexts: int, chunks: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of a table around loads in these cells of its axes, and which of them are each load's own, as
    places in an array (loads x rows,)."""
    low = (i * contexts + j) * chunks
    planes = np.array([0, chunks, contexts * chunks, (contexts + 1) * chunks])[:, None, None]
    rows = low + planes + np.array(cells)[:, None] + np.arange(2)
    own = np.broadcast_to(np.eye(len(cells), dtype=bool)[:, None, :, None], (len(cells), *rows.shape))
    rows, own = rows.ravel(), np.flatnonzero(own)
    rows.flags.writeable = own.flags.writeable = False
    return rows, own


def _cell(axis: tuple[float, ...], value: float) -> tuple[int, float]:
    """Lower line of a value's cell and its place in there: 0..1 within the grid, NaN for no number."""
    if value == 0.0:
        return 0, 0.0  # where every axis begins
    cell = min(bisect_right(axis, value) - 1, len(axis) - 2)
    if cell < 0:
        return 0, -1.0
    low, high = axis[cell], axis[cell + 1]
    return cell, (value - low) / (high - low)


def _blend(table: Table, corners: npt.NDArray[np.intp], weights: Floats) -> Floats:
    """Rows of `table` at the corners (n, 8) in the proportions of `weights` (n, 3)."""
    return _mix(table, corners, _shares(weights))


def _shares(weights: Floats) -> Floats:
    """Of the eight corners, (n, 1, 8)."""
    pairs = np.empty((2, *weights.shape))
    np.subtract(1.0, weights, out=pairs[0])
    pairs[1] = weights
    first, second, third = pairs[:, :, 0].T, pairs[:, :, 1].T, pairs[:, :, 2].T
    shares = first[:, :, None, None] * second[:, None, :, None] * third[:, None, None, :]
    return shares.reshape(len(weights), 1, 8)


def _mix(table: Table, corners: npt.NDArray[np.intp], shares: Floats) -> Floats:
    return np.asarray((shares @ table.take(corners, axis=0))[:, 0, :], dtype=np.float64)


def compile_model(model: StepModel, clocks_mhz: tuple[int, ...], shape: EngineShape) -> CompiledModel:
    """The table of `model` at `clocks_mhz` (ascending) over all loads that an engine of `shape` can have."""
    clocks = np.array(clocks_mhz, dtype=np.float64)
    if not len(clocks) or np.any(np.diff(clocks) <= 0) or clocks[0] <= 0:
        raise ValueError(f"clocks_mhz must be ascending, distinct and positive, got {clocks_mhz}")
    axes = _axes(model, shape)
    batch, context, prefill = (side.ravel() for side in np.meshgrid(*axes, indexing="ij"))
    kv = batch * context
    step_s = model.step_table(clocks, batch, kv, prefill)
    busy_w = model.power_table(clocks, batch, kv, prefill)
    if not (np.isfinite(step_s).all() and np.isfinite(busy_w).all() and (step_s > 0).all()):
        raise ValueError("the model predicts values that are not finite and positive")
    return CompiledModel(
        tuple(clocks_mhz),
        model.upper_factor,
        axes,
        step_s.astype(np.float32),
        busy_w.astype(np.float32),
        model.idle_power_w(clocks),
    )


def _axes(model: StepModel, shape: EngineShape) -> tuple[Floats, Floats, Floats]:
    knots = model.correction
    longest = min(shape.kv_capacity_tokens, _LONGEST_CONTEXT)
    return (
        _axis(_BATCHES, knots.batch, shape.max_num_seqs),
        _axis(_CONTEXTS, knots.context, longest),
        _axis(_PREFILLS, knots.prefill, shape.max_num_batched_tokens),
    )


def _axis(usual: tuple[int, ...], knots: tuple[float, ...], last: int) -> Floats:
    """Grid lines from 0 to `last`, the model's own knots among them."""
    inside = [float(value) for value in (*usual, *knots) if 0 <= value < last]
    return np.unique(np.array([0.0, *inside, float(last)]))
