"""One instance under control with simulated telemetry and time, and a ledger kept of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from kvwatt import artifact
from kvwatt.compiled import CompiledModel
from kvwatt.policy import PolicyParams
from kvwatt.state import EngineShape, Slo, SloTarget
from kvwatt_sim.cards import load
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.feed import EngineFeed
from kvwattd.config import InstanceConfig, Mode
from kvwattd.durations import Durations
from kvwattd.instance import InstanceRuntime, ModelSlot
from kvwattd.ledger.config import HoldoutConfig, LedgerConfig
from kvwattd.ledger.day import FILE_NAME, Ledger
from kvwattd.ledger.entry import Entry
from kvwattd.ledger.reading import read
from kvwattd.observation import Observation
from kvwattd.telemetry.energy_counter import EnergyCounter
from kvwattd.telemetry.gpu import GpuInfo

UUID = "GPU-0"
EPOCH_S = 1_700_000_000.0
TICK_S, POLL_S = 0.5, 1.0
SEED = bytes(range(16))
OFTEN = HoldoutConfig(share=0.5, window_s=60.0, warmup_s=20.0, settle_s=20.0)


def serving(rate_per_s: float = 2.0, floor_mhz: int = 900) -> tuple[CompiledModel, EngineShape, EngineFeed]:
    card = load("l20")
    shape = card.engine_shape()
    clocks = tuple(c for c in card.supported_mhz if c >= floor_mhz)
    model = artifact.load_compiled(cached_model(card), clocks, shape)
    return model, shape, EngineFeed(model, shape, rate_per_s, 7, 1000.0)


class World:
    """`advance` lets time pass: pages, readings, ticks, and the guard's answer at once."""

    def __init__(self, folder: Path, holdout: HoldoutConfig = OFTEN, mode: Mode = Mode.ACTIVE) -> None:
        card = load("l20")
        self.now_s, self.mode, self.reads = 1000.0, mode, True
        self.folder = folder
        self.model, _, self.feed = serving()
        slo = Slo(SloTarget(3.0), SloTarget(0.1), SloTarget(60.0))
        config = InstanceConfig(name="a", url="http://127.0.0.1:8000", gpus=(UUID,))
        self.run = InstanceRuntime(config, slo, PolicyParams(), Observation(POLL_S, 5.0), Durations())
        spec = card.gpu_spec(UUID)
        self.run.gpus = (
            GpuInfo(
                UUID, 0, spec.name, spec.supported_mhz, spec.boost_mhz, spec.default_cap_w, False, True, "1"
            ),
        )
        self.run.model = ModelSlot(self.model)
        self.counter = EnergyCounter(spec.default_cap_w)
        self.ticks = 0
        with patch("os.urandom", return_value=SEED):  # the windows are drawn by it
            self.ledger = Ledger(
                LedgerConfig(interval_s=30.0),
                holdout,
                folder,
                lambda: self.now_s,
                lambda: self.mode,
                self.wall,
            )
        self.ledger.start()

    def wall(self) -> float:
        return EPOCH_S + self.now_s

    def advance(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            self.ticks += 1
            if self.ticks % round(POLL_S / TICK_S) == 0:
                self.run.on_page(self.feed.page(self.now_s, self.run.confirmed_mhz), "v0.20")
                self.ledger.on_page(self.run)
            if self.reads:
                self._read()
            target = self.run.tick(self.now_s, self.mode, None)
            self.run.on_applied(target, self.now_s)
            each()

    def _read(self) -> None:
        sample = self.feed.sample(self.now_s, UUID, self.run.confirmed_mhz)
        account = self.counter.update(self.now_s, round(1e3 * sample.energy_j), sample.power_w)
        self.run.on_gpu({UUID: sample}, {})
        self.run.on_energy({UUID: account})
        self.ledger.on_gpu(self.run)

    def rows(self) -> list[Entry]:
        """Ends the ledger."""
        self.ledger.close()
        return read(self.folder / FILE_NAME, 0, 2**62)
