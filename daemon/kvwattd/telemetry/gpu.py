"""Read-only view of the GPUs. Each has a thread of its own, left behind when a call misses the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from kvwatt.state import GpuSample
from kvwattd.guard.amd_session import is_amd
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.telemetry.amd_reading import AmdSource
from kvwattd.telemetry.energy_counter import EnergyCounter, EnergyReading
from kvwattd.telemetry.nvml_reading import GpuInfo, NvmlSource, RawSample
from kvwattd.together import together

__all__ = ["GpuInfo", "GpuReader", "GpuUnavailable"]

T = TypeVar("T")
START_DEADLINE_S = 5.0  # the driver may have to load: seconds without persistence mode


class GpuUnavailable(Exception):  # noqa: N818 - a state of the GPU, not a mistake
    """No GPU can be read; the message says why."""


class Source(Protocol):
    """A vendor's library. Blocking; methods raise NvmlCallError."""

    def find(self, selector: str) -> GpuInfo: ...
    def read(self, info: GpuInfo) -> RawSample: ...


class _Gpu:
    """One GPU: its thread, what it is, its energy. Survives driver reloads; keyed by UUID."""

    def __init__(self, source: Source, selector: str) -> None:
        self.selector = selector
        self.worker = DeadlineWorker(f"read-{selector}")
        self.info: GpuInfo | None = None
        self.energy: EnergyCounter | None = None
        self._source = source

    def find(self) -> GpuInfo:
        return self._source.find(self.selector)

    def read(self, info: GpuInfo, now: Callable[[], float]) -> tuple[float, RawSample]:
        """The time is taken before the reading: a sample is never younger than it says."""
        observed_s = now()
        return observed_s, self._source.read(info)


class GpuReader:
    """Reads the GPUs named by UUID or index. Never calls a setter, never waits longer than its deadline."""

    def __init__(
        self, gpus: Sequence[str], deadline_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._nvml, self._amd = NvmlSource(), AmdSource()
        self._gpus = {selector: self._of(selector) for selector in gpus}
        self._order = tuple(gpus)
        self._deadline_s = deadline_s
        self._now = now
        self._failures: dict[str, str] = {}

    @property
    def failures(self) -> dict[str, str]:
        """UUID -> why it was missing from the last `read`."""
        return dict(self._failures)

    def choose(self, gpus: Sequence[str]) -> None:
        """Read these from now on, after another `start`; what stays keeps its account of energy."""
        for selector in self._gpus.keys() - set(gpus):
            self._gpus.pop(selector).worker.close()
        self._gpus = {gpu: self._gpus.get(gpu) or self._of(gpu) for gpu in gpus}
        self._order = tuple(gpus)

    def _of(self, selector: str) -> _Gpu:
        """By whose GPU its name says it is."""
        return _Gpu(self._amd if is_amd(selector) else self._nvml, selector)

    async def start(self) -> tuple[GpuInfo, ...]:
        """One entry per name given, in that order. Raises GpuUnavailable if any cannot be found."""
        gpus = list(self._gpus.values())
        try:
            infos = await together(*(self._call(gpu, gpu.find, START_DEADLINE_S) for gpu in gpus))
        except NvmlCallError as error:
            raise GpuUnavailable(error.message) from None
        except CallTimeoutError as error:
            raise GpuUnavailable(f"GPU: {error}") from None
        for gpu, info in zip(gpus, infos, strict=True):
            gpu.info = info
            if gpu.energy is None:  # kept over a restart: the sum must not fall
                gpu.energy = EnergyCounter(info.power_limit_w)
        found = {gpu.selector: info for gpu, info in zip(gpus, infos, strict=True)}
        return tuple(found[selector] for selector in self._order)

    async def read(self) -> dict[str, GpuSample]:
        """UUID -> sample; a GPU that cannot be read is left out and told in `failures`.

        Raises GpuUnavailable when none can be read, or `start` has not succeeded.
        """
        gpus = [gpu for gpu in self._gpus.values() if gpu.info is not None]
        if not gpus:
            raise GpuUnavailable("not started")
        self._failures = {}
        readings = await together(*(self._read_one(gpu) for gpu in gpus))
        samples = {reading.uuid: reading for reading in readings if reading is not None}
        if not samples:
            raise GpuUnavailable("; ".join(self._failures.values()))
        return samples

    def energy(self, uuid: str) -> EnergyReading:
        """The account behind `energy_j`: estimated part, resets, check against power. Raises KeyError."""
        for gpu in self._gpus.values():
            if gpu.info is not None and gpu.info.uuid == uuid and gpu.energy is not None:
                return gpu.energy.reading()
        raise KeyError(uuid)

    def accounts(self) -> dict[str, EnergyReading]:
        """The same of every GPU, by UUID."""
        gpus = self._gpus.values()
        return {gpu.info.uuid: gpu.energy.reading() for gpu in gpus if gpu.info and gpu.energy}

    def close(self) -> None:
        """Let the threads end; never waits for them. NVML is left to the end of the process."""
        for gpu in self._gpus.values():
            gpu.worker.close()

    async def _read_one(self, gpu: _Gpu) -> GpuSample | None:
        info, energy = gpu.info, gpu.energy
        if info is None or energy is None:
            return None
        try:
            observed_s, raw = await self._call(gpu, lambda: gpu.read(info, self._now), self._deadline_s)
        except NvmlCallError as error:
            self._failures[info.uuid] = error.message
            return None
        except CallTimeoutError as error:
            self._failures[info.uuid] = f"GPU {info.uuid}: {error}"
            return None
        return GpuSample(
            observed_s=observed_s,
            uuid=info.uuid,
            clock_mhz=raw.clock_mhz,
            power_w=raw.power_w,
            energy_j=energy.update(observed_s, raw.energy_mj, raw.power_w).total_j,
            temperature_c=raw.temperature_c,
            utilization=raw.utilization,
            event_reasons=raw.event_reasons,
        )

    async def _call(self, gpu: _Gpu, function: Callable[[], T], deadline_s: float) -> T:
        return await gpu.worker.call(function, deadline_s)
