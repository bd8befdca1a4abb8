"""Windows for the energy model from a virtual plant: pages and readings as the daemon takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan, pi, sin
from random import Random

from kvwatt.energy_factors import FACTORS
from kvwatt.state import EngineShape
from kvwatt_sim.cards import Card
from kvwatt_sim.metered.counter import Meter, Noise, sensor_gain
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.traces import TraceRequest
from kvwattd.energy_windows import EngineFacts, WindowBuilder

POLL_S = 0.5
GPU_S = 0.3
HOLD_S = (20.0, 120.0)  # how long a clock is held: drawn evenly from this
UUID = "GPU-metered"


@dataclass(frozen=True, slots=True)
class Metered:
    """A window as a row (see `energy_factors.window_row`), its joules by the counter and in truth."""

    ended_s: float
    row: tuple[float, ...]
    energy_j: float
    true_j: float


@dataclass(frozen=True, slots=True)
class Serving:
    """One stretch: requests in order, clocks to hold one after another at random, a power cap.

    `tells_traffic`: the server's version has vLLM's estimated FLOPs and bytes."""

    requests: tuple[TraceRequest, ...]
    clocks_mhz: tuple[int, ...]
    duration_s: float
    power_cap_w: float | None = None
    tells_traffic: bool = False
    hour_of_day: float = 12.0


def metered(
    card: Card, shape: EngineShape, serving: Serving, seed: int, noise: Noise, gpu: int = 0
) -> list[Metered]:
    """Every window of the stretch; the same for the same seed. `gpu`: whose sensor it is."""
    if serving.power_cap_w is not None:
        card = replace(card, power_cap_w=serving.power_cap_w)
    random = Random(seed)
    plant = VirtualPlant(card, shape, serving.requests)
    ambient_c = 26.0 + 6.0 * sin(pi * (serving.hour_of_day - 8.0) / 12.0)
    meter = Meter(plant, noise, seed, sensor_gain(noise, gpu), ambient_c)
    builder = WindowBuilder(EngineFacts(card.tp, shape.max_num_batched_tokens, card.power_cap_w * card.tp))
    found: list[Metered] = []
    next_clock_s, next_page_s, tick, before_j, before = 0.0, 0.0, 0, 0.0, (0, 0.0, 0.0)
    while plant.now_s < serving.duration_s:
        now_s = plant.now_s
        if now_s >= next_clock_s:
            plant.set_clock(random.choice(serving.clocks_mhz), card.switch_latency_s if tick else 0.0)
            next_clock_s = now_s + random.uniform(*HOLD_S)
        if now_s >= next_page_s:
            builder.on_page(plant.snapshot())
            next_page_s += POLL_S
        window = builder.on_gpu({UUID: meter.sample(UUID)})
        if window is not None:
            row, before = _traffic(plant, window.row, before, serving.tells_traffic)
            found.append(Metered(window.ended_s, row, window.energy_j, meter.true_j - before_j))
            before_j = meter.true_j
        tick += 1
        # Live, neither the daemon's ticks nor the server's answers come on the dot.
        meter.advance(now_s + GPU_S + random.uniform(0.0, 0.01))
    return found


def _traffic(
    plant: VirtualPlant, row: tuple[float, ...], before: tuple[int, float, float], told: bool
) -> tuple[tuple[float, ...], tuple[int, float, float]]:
    """vLLM's own estimates from a model's size: two FLOPs per parameter and token, weights once per step."""
    now = (plant.steps, plant.snapshot().iterations.sum, plant.now_s)
    steps, tokens = now[0] - before[0], now[1] - before[1]
    dt_s = max(now[2] - before[2], 1e-9)
    factors = dict(zip(FACTORS, row[1:], strict=True))
    card = plant.card
    kv = factors["kv_usage"] * factors["kv_capacity_tokens"] * card.kv_bytes_per_token * card.tp
    factors["flops_per_s"] = tokens / dt_s * card.weights_bytes * card.tp if told else nan
    factors["bytes_per_s"] = steps / dt_s * (card.weights_bytes * card.tp + kv) if told else nan
    return (row[0], *(factors[name] for name in FACTORS)), now


def split_hours(trace: Sequence[TraceRequest], duration_s: float) -> list[tuple[TraceRequest, ...]]:
    """The trace cut into stretches of `duration_s`, each counted from its own start; the rest is left out."""
    last = trace[-1].arrival_s if trace else 0.0
    parts: list[tuple[TraceRequest, ...]] = []
    for number in range(int(last // duration_s)):
        low = number * duration_s
        parts.append(
            tuple(
                replace(request, arrival_s=request.arrival_s - low)
                for request in trace
                if low <= request.arrival_s < low + duration_s
            )
        )
    return parts
