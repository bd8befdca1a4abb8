"""Windows whose energy is known in closed form, and an engine's step model to go with them."""

from __future__ import annotations

import numpy as np

from kvwatt.energy_factors import Windows, window_row, windows_of
from kvwatt.lattice import Floats

CLOCKS = (900.0, 1200.0, 1500.0, 1800.0)


class Law:
    """20 ms at 1000 MHz plus 1 us per KV token and 0.1 ms per prompt token; power rises with the clock."""

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        return np.asarray(20.0 / clock_mhz + 1e-6 * kv + 1e-4 * prefill)

    def power_w(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        return np.asarray(80.0 + 100.0 * (clock_mhz / 1000.0) ** 2 + 0.1 * batch)

    def idle_power_w(self, clock_mhz: Floats, /) -> Floats:
        return np.asarray(50.0 + 0.01 * clock_mhz)


def windows(count: int, seed: int, clocks: tuple[float, ...] = CLOCKS) -> Windows:
    """Windows of ten seconds at random loads."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        clock, batch, usage = float(draw.choice(clocks)), draw.uniform(1, 100), draw.uniform(0.01, 0.5)
        step_s = 20.0 / clock + 1e-6 * usage * 1e5
        steps = draw.uniform(0.1, 0.8) / step_s
        prompts = draw.uniform(0, 500)
        factors = {
            "clock_mhz": clock,
            "running": batch,
            "kv_capacity_tokens": 1e5,
            "kv_usage": usage,
            "steps_per_s": steps,
            "output_tokens_per_s": steps * batch,
            "prompt_tokens_per_s": prompts,
            "prompt_mean_tokens": 500.0,
            "token_budget": 2048.0,
            "temperature_c": draw.uniform(30, 80),
            "requests_per_s": prompts / 500.0,
            "tp": 1.0,
        }
        rows.append(window_row(10.0, factors))
    return windows_of(rows)
