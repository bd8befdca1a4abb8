"""The GPUs' task: finds what the instances named, reads it at a period, hands each instance its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from kvwattd.energy_learning.learner import EnergyLearner
from kvwattd.guard_child import GuardChild
from kvwattd.instance import InstanceRuntime
from kvwattd.ledger.day import Ledger
from kvwattd.recording.day import Recording
from kvwattd.telemetry.gpu import GpuInfo, GpuReader, GpuUnavailable

GPU_PERIOD_S = 0.5
GPU_RETRY_S = 2.0
GPU_DEADLINE_S = 1.0


class Gpus:
    """Reads the GPUs of `runs`; call `regroup` when instances come or go."""

    def __init__(
        self,
        runs: Mapping[str, InstanceRuntime],
        recording: Recording,
        ledger: Ledger,
        energy: Mapping[str, EnergyLearner],
        guard_child: GuardChild | None,
    ) -> None:
        self._runs = runs
        self._recording = recording
        self._ledger = ledger
        self._energy = energy
        self._guard_child = guard_child
        self._reader = GpuReader(self._selectors(), GPU_DEADLINE_S)
        self._regrouped = False  # instances came or went: their GPUs are not assigned yet

    def _selectors(self) -> list[str]:
        return list(dict.fromkeys(gpu for run in self._runs.values() for gpu in run.config.gpus))

    def _users(self) -> list[InstanceRuntime]:
        """All but those that are parked while another one is on their GPUs: each joule is counted once."""
        serving = {info.uuid for run in self._runs.values() if run.resting is None for info in run.gpus}
        return [
            run
            for run in self._runs.values()
            if run.resting is None or not any(info.uuid in serving for info in run.gpus)
        ]

    def regroup(self) -> None:
        """Look the GPUs up again before the next reading."""
        self._regrouped = True

    def close(self) -> None:
        """Leave NVML."""
        self._reader.close()

    async def run(self) -> None:
        """Read at a period until cancelled; what cannot be read is told to every instance."""
        infos: tuple[GpuInfo, ...] = ()
        while True:
            try:
                if self._regrouped:
                    self._regrouped, infos = False, ()
                    self._reader.choose(self._selectors())
                if not infos:
                    infos = await self._reader.start()
                    await self._assign(infos)
                samples = await self._reader.read()
            except GpuUnavailable as error:
                for run in self._runs.values():
                    run.on_gpu_error(f"GPU: {error}")
                await asyncio.sleep(GPU_RETRY_S if not infos else GPU_PERIOD_S)
                continue
            for run in self._users():
                run.on_gpu(samples, self._reader.failures)
                run.on_energy(self._reader.accounts())
                self._recording.on_gpu(run)
                self._ledger.on_gpu(run)
                if run.gpu_fault is None and run.resting is None:
                    self._energy[run.name].on_gpu(run.samples)
            await asyncio.sleep(GPU_PERIOD_S)

    async def _assign(self, infos: tuple[GpuInfo, ...]) -> None:
        """Hand each instance the GPUs it named, by UUID or index."""
        if self._regrouped:
            return  # they came and went while the GPUs were looked up: once more
        by_selector = dict(zip(self._selectors(), infos, strict=True))
        _refuse_shared(by_selector)
        for run in self._runs.values():
            run.gpus = tuple(by_selector[gpu] for gpu in run.config.gpus)
        if self._guard_child is not None:
            await self._guard_child.allow([info.uuid for info in infos])


def _refuse_shared(by_selector: Mapping[str, GpuInfo]) -> None:
    """An index and a UUID may name the same GPU, which only shows once they are looked up."""
    named: dict[str, str] = {}
    for selector, info in by_selector.items():
        if info.uuid in named:
            raise GpuUnavailable(
                f"{named[info.uuid]!r} and {selector!r} are the same GPU {info.uuid}: name it once"
            )
        named[info.uuid] = selector
