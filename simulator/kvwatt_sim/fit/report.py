"""How far a plant is from the measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from kvwatt_sim import gpu
from kvwatt_sim.fit.laws import predict
from kvwatt_sim.fit.tables import PowerPoint, StepPoint


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute relative errors, 0..1, of the plant with its power cap in force."""

    decode_time: float
    decode_time_worst: float
    prefill_time: float
    prefill_time_worst: float
    decode_power: float  # batch >= 16
    decode_power_small: float  # batch < 16, where the measurements scatter by 10-20 %
    prefill_power: float
    idle_power: float

    def lines(self) -> list[str]:
        return [f"{name:20s} {value:7.2%}" for name, value in asdict(self).items()]


def step_errors(plant: gpu.Plant, points: Sequence[StepPoint], idle: Sequence[PowerPoint]) -> Errors:
    """Compare with every measured step and idle power."""
    times: dict[bool, list[float]] = {True: [], False: []}
    power: dict[str, list[float]] = {"large": [], "small": [], "prefill": []}
    for point in points:
        time_s, power_w = predict(plant, point)
        times[point.is_decode].append(abs(time_s / point.time_s - 1))
        power[_group(point)].append(abs(power_w / point.power_w - 1))
    return Errors(
        decode_time=_mean(times[True]),
        decode_time_worst=max(times[True]),
        prefill_time=_mean(times[False]),
        prefill_time_worst=max(times[False]),
        decode_power=_mean(power["large"]),
        decode_power_small=_mean(power["small"]),
        prefill_power=_mean(power["prefill"]),
        idle_power=power_error(plant, idle),
    )


def power_error(plant: gpu.Plant, points: Sequence[PowerPoint]) -> float:
    """Mean absolute relative error of power at a known activity."""
    return _mean(
        abs(gpu.power_w(plant, point.clock_mhz, point.compute, point.memory) / point.power_w - 1)
        for point in points
    )


def _group(point: StepPoint) -> str:
    if not point.is_decode:
        return "prefill"
    return "large" if point.decode_batch >= 16 else "small"


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)
