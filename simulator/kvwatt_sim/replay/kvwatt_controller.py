"""kvwatt itself as a controller: the daemon's own instance code, fed with what it would see live."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvwatt.compiled import CompiledModel
from kvwatt.policy import PolicyParams
from kvwatt.state import EngineShape, Slo
from kvwatt_sim.cards import Card
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.told import Told
from kvwattd.config import InstanceConfig, Mode
from kvwattd.durations import Durations
from kvwattd.instance import InstanceRuntime, ModelSlot
from kvwattd.observation import Observation
from kvwattd.telemetry.gpu import GpuInfo

UUID = "GPU-virtual"
GPU_PERIOD_TICKS = 3  # GPU readings every third tick, about as live
PROMISE_S = 3600.0  # a replay's promises are judged over the whole run, of an hour in the usual traces


@dataclass
class KvwattController:
    """Polls pages and GPU readings and ticks as the daemon does.

    `model` is a trained one, not the plant's laws; true lengths are never seen. `tapped`: every request is
    known one by one, as from the tap; False: aggregates only, as from the metrics page. `mode`: in shadow
    mode the clock is never asked for, as live.
    """

    card: Card
    shape: EngineShape
    model: CompiledModel
    slo: Slo
    params: PolicyParams
    poll_s: float = 0.5
    period_s: float = 0.1
    switch_latency_s: float = 0.2
    tapped: bool = True
    mode: Mode = Mode.ACTIVE
    durations: Durations = field(default_factory=Durations)  # of decisions
    run: InstanceRuntime = field(init=False)
    _ticks: int = field(default=0, init=False)
    _told: Told = field(default_factory=Told, init=False)

    def __post_init__(self) -> None:
        config = InstanceConfig(
            name="virtual",
            url="http://127.0.0.1:1",
            gpus=("GPU-0",),
            poll_s=self.poll_s,
            max_num_seqs=self.shape.max_num_seqs,
            max_num_batched_tokens=self.shape.max_num_batched_tokens,
        )
        observation = Observation(self.poll_s, 3 * self.poll_s, self.shape.max_num_batched_tokens)
        self.run = InstanceRuntime(config, self.slo, self.params, observation, self.durations)
        self.run.model = ModelSlot(self.model, None)
        self.run.gpus = (gpu_info(self.card),)
        self.run.promises.over(PROMISE_S)

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        run = self.run
        if self._ticks % round(self.poll_s / self.period_s) == 0:
            if self.tapped:
                run.observation.tap.on_record(self._told.record(plant), now_s)
            run.on_page(plant.snapshot())
            steady = now_s - run.applied.since_s > self.poll_s + self.switch_latency_s
            run.observation.calibrate(self.model, run.samples, steady)
        if self._ticks % GPU_PERIOD_TICKS == 0:
            run.on_gpu({UUID: plant.sample(UUID)}, {})
        if self.tapped:
            run.observation.on_state(plant.state())
        self._ticks += 1
        before = run.confirmed_mhz
        target = run.tick(now_s, self.mode, None)
        if target != before:
            run.on_applied(target, now_s)
        return target


def gpu_info(card: Card) -> GpuInfo:
    """The group as one GPU whose power is that of all."""
    return GpuInfo(
        uuid=UUID,
        index=0,
        name=card.gpu_name,
        supported_mhz=card.supported_mhz,
        default_mhz=card.boost_mhz,
        power_limit_w=card.power_cap_w * card.tp,
        mig=False,
        persistence=True,
        driver_version="virtual",
    )
