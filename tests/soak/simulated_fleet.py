"""A daemon without sockets, threads and NVML: its own loop pieces fed with simulated telemetry and time."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvwatt import artifact
from kvwatt.compiled import CompiledModel
from kvwatt.state import EngineShape, EngineSnapshot, GpuSample
from kvwatt_sim.cards import load
from kvwatt_sim.feed import EngineFeed
from kvwatt_sim.nvml.spec import GpuSpec
from kvwattd.config import parse_config
from kvwattd.instance import ModelSlot
from kvwattd.loop import Daemon
from kvwattd.telemetry.gpu import GpuInfo

CARD = "l20"
LAYOUT = "v0.20"
RATE_PER_S = 3.0
GPU_PERIOD_S = 0.5


class LogCount(logging.Handler):
    """Counts lines instead of writing them, and remembers the last of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = 0
        self.kinds: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1
        kind = f"{record.name}: {record.msg}"
        self.kinds[kind] = self.kinds.get(kind, 0) + 1


@dataclass
class Clock:
    """Time that is told."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def compiled_model(model: Path, spec: GpuSpec) -> tuple[CompiledModel, EngineShape]:
    """The table of the card's model, as every instance of a host with one kind of GPU has it."""
    card = load(CARD)
    shape = card.engine_shape()
    manifest = artifact.load_manifest(model)
    low, high = manifest.clock_range_mhz
    clocks = tuple(c for c in spec.supported_mhz if max(low, 900) <= c <= min(high, 2400))
    return artifact.load_compiled(model, clocks, shape), shape


class Fleet:
    """`count` instances in one daemon; `advance` lets time pass."""

    def __init__(
        self,
        count: int,
        model: Path,
        folder: Path,
        tick_s: float = 0.1,
        poll_s: float = 0.5,
        stale_after_s: float = 1.5,
    ) -> None:
        self.clock = Clock()
        self.tick_s, self.poll_s = tick_s, poll_s
        self._spec = load(CARD).gpu_spec("GPU-0")
        self.model, shape = compiled_model(model, self._spec)
        self.daemon = Daemon(parse_config(_configuration(count, folder, model, self)), now=self.clock)
        self.feeds = [
            EngineFeed(self.model, shape, RATE_PER_S, seed, self.clock.now_s) for seed in range(count)
        ]
        self.runs = list(self.daemon.runs.values())
        for number, run in enumerate(self.runs):
            run.gpus = (_info(self._spec, f"GPU-{number:04d}"),)
            run.model = ModelSlot(self.model)
        self._due_s = [self.clock.now_s + poll_s * n / count for n in range(count)]
        self._gpu_due_s = self.clock.now_s

    def advance(self, seconds: float) -> None:
        """Ticks at their period, pages and readings where they are due."""
        until_s = self.clock.now_s + seconds
        while self.clock.now_s < until_s - 1e-9:
            self.clock.now_s += self.tick_s
            self.feed()
            self.daemon.tick(self.clock.now_s)

    def feed(self) -> None:
        """The pages and readings that are due."""
        if self.clock.now_s >= self._gpu_due_s:
            self._gpu_due_s = self.clock.now_s + GPU_PERIOD_S
            for number, run in enumerate(self.runs):
                run.on_gpu(self.reading(number), {})
        due = self.due()
        for number in due:
            self.daemon.on_page(self.runs[number], self.page(number), LAYOUT)
        self.confirm(due)

    def due(self) -> list[int]:
        """Whose page is due, each at its own phase of the period."""
        found = [n for n, due_s in enumerate(self._due_s) if due_s <= self.clock.now_s]
        for number in found:
            self._due_s[number] += self.poll_s
        return found

    def page(self, number: int) -> EngineSnapshot:
        """What its server would show now."""
        return self.feeds[number].page(self.clock.now_s, self.runs[number].confirmed_mhz)

    def reading(self, number: int) -> dict[str, GpuSample]:
        """What its GPU would show now."""
        run = self.runs[number]
        uuid = run.gpus[0].uuid
        return {uuid: self.feeds[number].sample(self.clock.now_s, uuid, run.confirmed_mhz)}

    def confirm(self, numbers: Sequence[int]) -> None:
        """As a guard would that sets every clock at once."""
        for number in numbers:
            run = self.runs[number]
            run.on_applied(run.applied.clock_mhz, self.clock.now_s)


def _info(spec: GpuSpec, uuid: str) -> GpuInfo:
    return GpuInfo(
        uuid=uuid,
        index=0,
        name=spec.name,
        supported_mhz=spec.supported_mhz,
        default_mhz=spec.boost_mhz,
        power_limit_w=spec.cap_w,
        mig=False,
        persistence=True,
        driver_version=spec.driver_version,
    )


def _configuration(count: int, folder: Path, model: Path, fleet: Fleet) -> dict[str, object]:
    return {
        "daemon": {"mode": "shadow", "tick_s": fleet.tick_s, "state_dir": str(folder / "state")},
        "model": {"path": str(model), "refit_s": 0},
        "slo": {"ttft": {"limit_s": 3.0}, "tbt": {"limit_s": 0.1}, "e2e": {"limit_s": 60.0}},
        "policy": {"floor_mhz": 900, "ceiling_mhz": 2400},
        "instance": [
            {
                "name": f"i{number}",
                "url": f"http://127.0.0.1:{8000 + number}",
                "gpus": [f"GPU-{number:04d}"],
                "poll_s": fleet.poll_s,
                "stale_after_s": 3 * fleet.poll_s,
            }
            for number in range(count)
        ],
    }


def objects() -> int:
    """Objects that the garbage collector knows, after it has collected."""
    gc.collect()
    return len(gc.get_objects())
