"""Step time and power of one engine by clock and load: physical prior times a LightGBM correction.

    log T(f) = S(log prior(f)),   S piecewise linear through (log prior(f_k), log T_k)

f_k are the clocks the model was trained at and T_k = prior x correction there, made non-increasing in
the clock. The prior is monotone in the clock and S in its argument, so T is monotone at every clock, and
between trained clocks it follows the prior's shape. Beyond the trained clocks the nearest correction
holds; beyond the trained loads it may raise the prior but not lower it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.energy import PowerModel
from kvwatt.lattice import Floats, Lattice
from kvwatt.manifest import Manifest
from kvwatt.prior import StepPrior

Numbers = npt.ArrayLike


@dataclass(frozen=True, slots=True)
class StepModel:
    """A fitted model of one engine on one hardware. Pure numpy; the tree texts are kept for saving."""

    prior: StepPrior
    correction: Lattice
    power: PowerModel
    upper_factor: float  # observed step time <= upper_factor x predicted in 90 % of unseen points
    manifest: Manifest
    step_trees: str
    power_trees: str

    def step_time_s(
        self, clock_mhz: Numbers, decode_batch: Numbers, kv_tokens: Numbers, prefill_tokens: Numbers
    ) -> Floats:
        """Seconds of one engine step; the arguments broadcast against each other."""
        clock, batch, kv, prefill, shape = _flat(clock_mhz, decode_batch, kv_tokens, prefill_tokens)
        if not len(clock):
            return np.zeros(shape)
        clocks, column = np.unique(clock, return_inverse=True)
        table = self.step_table(clocks, batch, kv, prefill)
        return table[np.arange(len(clock)), column].reshape(shape)

    def power_w(
        self, clock_mhz: Numbers, decode_batch: Numbers, kv_tokens: Numbers, prefill_tokens: Numbers
    ) -> Floats:
        """Watts while such steps run, summed over the instance's GPUs; the arguments broadcast."""
        clock, batch, kv, prefill, shape = _flat(clock_mhz, decode_batch, kv_tokens, prefill_tokens)
        if not len(clock):
            return np.zeros(shape)
        clocks, column = np.unique(clock, return_inverse=True)
        table = self.power_table(clocks, batch, kv, prefill)
        return table[np.arange(len(clock)), column].reshape(shape)

    def idle_power_w(self, clock_mhz: Numbers) -> Floats:
        """Watts at a locked clock while no request runs."""
        return self.power.prior.idle_power_w(np.asarray(clock_mhz, dtype=np.float64))

    def step_table(self, clocks_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        """Seconds at n loads (n,) and m clocks (m,): shape (n, m)."""
        nodes = np.array(self.correction.clocks_mhz)
        b, k, n = (column[:, None] for column in (batch, kv, prefill))
        node_x = np.log(self.prior.step_time_s(nodes[None, :], b, k, n))
        log_ratio = self.correction.at(batch, kv, prefill)
        beyond = self.correction.beyond(batch, kv, prefill)[:, None]
        node_y = node_x + np.where(beyond, np.maximum(log_ratio, 0.0), log_ratio)
        node_y = _non_increasing(node_y)
        x = np.log(self.prior.step_time_s(clocks_mhz[None, :], b, k, n))
        return np.exp(_follow(x, clocks_mhz, node_x, node_y, nodes))

    def power_table(self, clocks_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        """Watts at n loads (n,) and m clocks (m,): shape (n, m)."""
        return self.power.power_w(self.prior, clocks_mhz, batch, kv, prefill)


def _non_increasing(y: Floats) -> Floats:
    """Rows between their smallest non-increasing upper bound and their largest lower one: unbiased."""
    upper = np.maximum.accumulate(y[:, ::-1], axis=1)[:, ::-1]
    lower = np.minimum.accumulate(y, axis=1)
    return np.asarray((upper + lower) / 2)


def _follow(x: Floats, clocks: Floats, node_x: Floats, node_y: Floats, nodes: Floats) -> Floats:
    """S(x) of the module text, row by row: x (n, m), nodes (n, k) with node_x falling along k."""
    left = np.clip(np.searchsorted(nodes, clocks, side="right") - 1, 0, len(nodes) - 1)
    right = np.minimum(left + 1, len(nodes) - 1)
    x0, x1, y0, y1 = node_x[:, left], node_x[:, right], node_y[:, left], node_y[:, right]
    span = x0 - x1
    share = np.clip(np.where(span > 1e-12, (x0 - x) / np.maximum(span, 1e-12), 0.0), 0.0, 1.0)
    inside = y0 + share * (y1 - y0)
    below, above = clocks < nodes[0], clocks > nodes[-1]
    inside = np.where(below[None, :], x + (node_y - node_x)[:, :1], inside)
    return np.where(above[None, :], x + (node_y - node_x)[:, -1:], inside)


def _flat(*arguments: Numbers) -> tuple[Floats, Floats, Floats, Floats, tuple[int, ...]]:
    arrays = np.broadcast_arrays(*(np.asarray(argument, dtype=np.float64) for argument in arguments))
    clock, batch, kv, prefill = (np.ravel(array) for array in arrays)
    if np.any(clock <= 0):
        raise ValueError(f"clock_mhz must be positive, got {clock.min()}")
    return clock, batch, kv, prefill, arrays[0].shape
