"""Finds the capacity that `settings.CAPACITY_PER_S` states: `python -m kvwatt_sim.demo.capacity`.

Capacity is the highest request rate at which p99 TTFT stays within 3 s at the top clock, in virtual time
over an hour of the built-in workload.
"""

from __future__ import annotations

import sys

from kvwatt_sim import cards, workload
from kvwatt_sim.demo.settings import CARD
from kvwatt_sim.latency import quantile
from kvwatt_sim.replay.controller import FixedClock, replay

TTFT_LIMIT_S = 3.0
RESOLUTION_PER_S = 0.05


def p99_s(card: cards.Card, rate_per_s: float, duration_s: float, seed: int = 0) -> tuple[float, float]:
    """p99 TTFT and p99 E2E at the top clock under the built-in workload."""
    shape, requests = card.engine_shape(), workload.generate(rate_per_s, duration_s, seed)
    latencies = replay(card, shape, requests, FixedClock(None), duration_s).served.latencies()
    ttft, e2e = (quantile(latencies[name].tolist(), 0.99) for name in ("ttft", "e2e"))
    if ttft is None or e2e is None:
        raise ValueError(f"no request arrived in {duration_s:g} s at {rate_per_s:g} requests/s")
    return ttft, e2e


def capacity_per_s(card: cards.Card, duration_s: float = 3600.0, seed: int = 0) -> float:
    """Bisects the rate between idle and far too much."""
    low, high = 0.1, 12.0
    while high - low > RESOLUTION_PER_S:
        middle = (low + high) / 2.0
        if p99_s(card, middle, duration_s, seed)[0] <= TTFT_LIMIT_S:
            low = middle
        else:
            high = middle
    return low


def main() -> None:
    """Print the capacity of the demonstration's card, and the latencies there, for a few seeds."""
    card = cards.load(CARD)
    for seed in range(3):
        rate_per_s = capacity_per_s(card, seed=seed)
        ttft_s, e2e_s = p99_s(card, rate_per_s, 3600.0, seed)
        sys.stdout.write(
            f"{CARD} seed {seed}: {rate_per_s:.2f} requests/s; "
            f"p99 TTFT {ttft_s:.2f} s, p99 E2E {e2e_s:.1f} s\n"
        )


if __name__ == "__main__":
    main()
