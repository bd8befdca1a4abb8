"""The group of simulated GPUs that one server runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from kvwatt_sim.nvml.control import SimGpus


class GpuGroup:
    """GPUs that work in step: as fast as the slowest of them, all equally busy."""

    def __init__(self, gpus: SimGpus, indices: tuple[int, ...]) -> None:
        for index in indices:
            if index >= gpus.count:
                raise ValueError(f"gpu = {index}: {gpus.path} has GPUs 0 to {gpus.count - 1}")
        self._gpus = gpus
        self._indices = indices

    @classmethod
    def open(cls, state: Path, indices: tuple[int, ...]) -> Self:
        """Raises OSError for a missing or foreign state file, ValueError for an unknown index."""
        return cls(SimGpus.open(state), indices)

    def clock_mhz(self) -> int:
        """Clock of a step that starts now."""
        return min(self._gpus.load_clock_mhz(index) for index in self._indices)

    def publish(self, compute: float, memory: float) -> None:
        """Activity of every GPU of the group from now on."""
        for index in self._indices:
            self._gpus.publish(index, compute, memory)

    def hold_memory(self, pid: int, used_bytes: int) -> None:
        """Show the server as a process that holds GPU memory; 0 bytes: no more."""
        for index in self._indices:
            self._gpus.set_process(index, pid, used_bytes)

    def close(self) -> None:
        """Leave the GPUs idle."""
        self.publish(0.0, 0.0)
        self._gpus.close()
