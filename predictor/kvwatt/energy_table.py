"""A compiled model read at any clock: what the daemon has of an engine, as the energy model's step model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvwatt.compiled import CompiledModel
from kvwatt.lattice import Floats, locate


@dataclass(frozen=True, slots=True, eq=False)
class TableEnergy:
    """`energy_prior.StepEnergy` of a compiled table, linear between its clocks, constant beyond them."""

    model: CompiledModel

    def __eq__(self, other: object) -> bool:
        """Of the very same table."""
        return isinstance(other, TableEnergy) and self.model is other.model

    def __hash__(self) -> int:
        return id(self.model)

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        """Seconds of a step, (n,)."""
        return self._at(clock_mhz, self.model.step_time_s(batch, kv, prefill))

    def power_w(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        """Watts while such steps run, (n,)."""
        return self._at(clock_mhz, self.model.power_w(batch, kv, prefill))

    def idle_power_w(self, clock_mhz: Floats, /) -> Floats:
        """Watts at each clock while no request runs, (n,)."""
        idle = self.model.idle_power_w()
        return self._at(clock_mhz, np.broadcast_to(idle, (len(clock_mhz), len(idle))))

    def _at(self, clock_mhz: Floats, table: Floats) -> Floats:
        cell, share = locate(np.array(self.model.clocks_mhz, dtype=np.float64), clock_mhz)
        rows, last = np.arange(len(cell)), table.shape[1] - 1
        low, high = table[rows, cell], table[rows, np.minimum(cell + 1, last)]
        return np.asarray(low + share * (high - low))
