"""The energy counter as hardware keeps it, over a virtual plant whose energy is exact.

What is taken from measurements of real counters:

    update      the counter moves every 20-100 ms (NVML; here one period per GPU), so that a reading is old
    sampling    on A100 and H100 power is sampled for a quarter of the time (arXiv 2312.02741): what happens
                in the other three quarters of an update period is not seen
    gain        each sensor reads its own few percent too high or too low, always the same (5 % is what
                vendors vouch for; here normal with 2 %)
    noise       each power sample is off by some watts
    quantum     the counter counts millijoules; power samples are whole milliwatts

Beyond the plant's own law, leakage rises with the temperature, which follows the power with a time
constant: so that temperature is a factor here as it is on silicon.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from random import Random

from kvwatt.state import GpuSample
from kvwatt_sim.replay.plant import VirtualPlant

REFERENCE_C = 50.0


@dataclass(frozen=True, slots=True)
class Noise:
    """How a counter errs; `none()` for an exact one."""

    update_s: float = 0.1
    sampled_share: float = 0.25
    gain_sd: float = 0.02
    sample_sd_w: float = 3.0
    leak_per_c: float = 0.002  # of idle power, per degree above REFERENCE_C
    heat_rise_c: float = 45.0  # over ambient at the power cap
    heat_tau_s: float = 20.0

    @staticmethod
    def none() -> Noise:
        """The plant's own energy, read every millisecond."""
        return Noise(0.001, 1.0, 0.0, 0.0, 0.0, 0.0)


def sensor_gain(noise: Noise, gpu: int) -> float:
    """What this GPU's sensor makes of a watt, for as long as it lives."""
    return 1.0 + Random(gpu).gauss(0.0, noise.gain_sd)


class Meter:
    """Drives the plant: `advance` moves both."""

    def __init__(
        self, plant: VirtualPlant, noise: Noise, seed: int, gain: float = 1.0, ambient_c: float = 28.0
    ) -> None:
        self.plant, self.noise, self.gain, self.ambient_c = plant, noise, gain, ambient_c
        self._random = Random(seed)
        self._updates = 0
        self._counter_mj = 0
        self._busy_s = self._seen_s = 0.0
        self.temperature_c = ambient_c
        self.true_j = 0.0  # with leakage, without the sensor's errors

    def advance(self, until_s: float) -> None:
        """Run the plant until `until_s`, updating the counter on the way."""
        period_s = self.noise.update_s
        while (self._updates + 1) * period_s <= until_s + 1e-9:
            self._update(self._updates * period_s)
            self._updates += 1
        self._run(until_s)

    def _run(self, until_s: float) -> float:
        """Joules until then, leakage included."""
        plant, before_s, before_j = self.plant, self.plant.now_s, self.plant.energy_j
        plant.advance(max(until_s, before_s))
        dt_s = plant.now_s - before_s
        if dt_s <= 0.0:
            return 0.0
        joules = plant.energy_j - before_j + self._leak_w() * dt_s
        self._warm(joules / dt_s, dt_s)
        self.true_j += joules
        self._seen_s += dt_s
        self._busy_s += dt_s if plant.running else 0.0
        return joules

    def _update(self, start_s: float) -> None:
        seen_s = self.noise.sampled_share * self.noise.update_s
        before_s = self.plant.now_s
        joules = self._run(start_s + seen_s)
        sampled_s = self.plant.now_s - before_s
        watts = joules / sampled_s if sampled_s > 0 else self.plant.power_w
        self._run(start_s + self.noise.update_s)
        read_w = max(self.gain * (watts + self._random.gauss(0.0, self.noise.sample_sd_w)), 0.0)
        self._counter_mj += round(read_w * self.noise.update_s * 1000.0)

    def _leak_w(self) -> float:
        idle_w = self.plant.card.power.idle_w * self.plant.card.tp
        return self.noise.leak_per_c * (self.temperature_c - REFERENCE_C) * idle_w

    def _warm(self, watts: float, dt_s: float) -> None:
        card, noise = self.plant.card, self.noise
        settled = self.ambient_c + noise.heat_rise_c * watts / (card.power_cap_w * card.tp)
        self.temperature_c += (settled - self.temperature_c) * (1.0 - exp(-dt_s / noise.heat_tau_s))

    def sample(self, uuid: str) -> GpuSample:
        """What NVML would say now: the group as one GPU, utilization over the time since the last sample."""
        share = self._busy_s / self._seen_s if self._seen_s > 0 else float(self.plant.running > 0)
        self._busy_s = self._seen_s = 0.0
        sample = self.plant.sample(uuid)
        return GpuSample(
            observed_s=self.plant.now_s,
            uuid=uuid,
            clock_mhz=sample.clock_mhz,
            power_w=sample.power_w,
            energy_j=self._counter_mj / 1000.0,
            temperature_c=float(round(self.temperature_c)),
            utilization=round(min(share, 1.0), 2),
            event_reasons=sample.event_reasons,
        )
