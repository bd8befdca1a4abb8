"""The daemon's own instance code around a plant in virtual time: what it would do, without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvwatt.compiled import CompiledModel
from kvwatt.policy import PolicyParams
from kvwatt.state import EngineShape, Slo
from kvwatt_sim.cards import Card
from kvwatt_sim.engine import RequestRecord
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.traces import TraceRequest
from kvwattd.config import InstanceConfig, Mode
from kvwattd.durations import Durations
from kvwattd.instance import InstanceRuntime, ModelSlot
from kvwattd.observation import Observation
from kvwattd.telemetry.gpu import GpuInfo

UUID = "GPU-virtual"
GPU_PERIOD_TICKS = 3  # GPU readings every third tick, about as live


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run cost and served."""

    energy_j: float
    duration_s: float
    tokens: int
    clock_changes: int
    records: tuple[RequestRecord, ...]


def run_fixed(
    card: Card, shape: EngineShape, requests: Sequence[TraceRequest], clock_mhz: int | None, until_s: float
) -> Outcome:
    """Serve at one clock (None: driver default) until everything has finished and `until_s` is over."""
    plant = VirtualPlant(card, shape, requests)
    plant.set_clock(clock_mhz, 0.0)
    plant.advance(until_s)
    while not plant.done:
        plant.advance(plant.now_s + 1.0)
    return _outcome(plant, 0)


def run_controlled(
    card: Card,
    shape: EngineShape,
    requests: Sequence[TraceRequest],
    model: CompiledModel,
    slo: Slo,
    until_s: float,
    params: PolicyParams,
    poll_s: float = 0.5,
    tick_s: float = 0.1,
    switch_latency_s: float = 0.2,
) -> Outcome:
    """Serve under the daemon's decisions, polled and ticked as live."""
    plant = VirtualPlant(card, shape, requests)
    run = _runtime(card, shape, model, slo, params, poll_s)
    ticks = 0
    while plant.now_s < until_s or not plant.done:
        plant.advance(ticks * tick_s)
        if ticks % round(poll_s / tick_s) == 0:
            run.observation.on_page(plant.snapshot())
            steady = plant.now_s - run.applied.since_s > poll_s + switch_latency_s
            run.observation.calibrate(model, run.samples, steady)
        if ticks % GPU_PERIOD_TICKS == 0:
            run.on_gpu({UUID: plant.sample(UUID)}, {})
        before = run.confirmed_mhz
        target = run.tick(plant.now_s, Mode.ACTIVE, None)
        if target != before:
            plant.set_clock(target, switch_latency_s)
            run.on_applied(target, plant.now_s)
        ticks += 1
    return _outcome(plant, run.clock_changes)


def _runtime(
    card: Card, shape: EngineShape, model: CompiledModel, slo: Slo, params: PolicyParams, poll_s: float
) -> InstanceRuntime:
    config = InstanceConfig(
        name="virtual",
        url="http://127.0.0.1:1",
        gpus=("GPU-0",),
        poll_s=poll_s,
        max_num_seqs=shape.max_num_seqs,
        max_num_batched_tokens=shape.max_num_batched_tokens,
    )
    run = InstanceRuntime(config, slo, params, Observation(poll_s, 3 * poll_s), Durations())
    run.model = ModelSlot(model, None)
    run.gpus = (_gpu(card),)
    return run


def _gpu(card: Card) -> GpuInfo:
    return GpuInfo(
        uuid=UUID,
        index=0,
        name=card.gpu_name,
        supported_mhz=card.supported_mhz,
        default_mhz=card.boost_mhz,
        power_limit_w=card.power_cap_w,
        mig=False,
        persistence=True,
        driver_version="virtual",
    )


def _outcome(plant: VirtualPlant, clock_changes: int) -> Outcome:
    tokens = sum(record.output_tokens for record in plant.records)
    return Outcome(plant.energy_j, plant.now_s, tokens, clock_changes, tuple(plant.records))
