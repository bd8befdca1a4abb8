"""A compressed day for a pool: how it rises and falls, what is asked of it, how fast everything is."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path

import numpy as np

from kvwatt.state import Slo, SloTarget
from kvwatt_sim import workload
from kvwatt_sim.demo.fleet import PoolPace
from kvwatt_sim.demo.settings import DemoError, PageOptions
from kvwatt_sim.traces import TraceRequest

HOURS = 24.0
# Answers an eighth as long as those of conversations, to be short beside a day of minutes. Prompts stay.
ANSWER_SHARE = 0.125
SLO = Slo(ttft=SloTarget(3.0), tbt=SloTarget(0.2), e2e=SloTarget(60.0))
# At the day's busiest hour, of each of the instances: 60 % of the 4.5/s that one carries within the promises.
PEAK_PER_INSTANCE_S = 2.7
NIGHT_SHARE = 0.16  # of the busiest hour; a day of ServeGen's conversations falls to about this
QUIETEST_HOUR = 3.5

STOP_RESERVE_S = 8.0  # to drain the last answers, stop everything and print
LOAD_S = 0.5  # in which a simulated server loads its model, beside the second its process takes to come up
LEAST_DAY_S = 30.0


@dataclass(frozen=True, slots=True)
class DayOptions:
    """What the command line said. `seconds` bounds everything, setup and stopping included."""

    instances: int = 4
    seconds: float = 240.0
    seed: int = 0
    json_file: Path | None = None
    page: PageOptions = field(default_factory=PageOptions)

    def __post_init__(self) -> None:
        if not 2 <= self.instances <= 8:
            raise DemoError(f"--instances {self.instances}: 2 to 8 are accepted")
        if not 90.0 <= self.seconds <= 86_400.0:
            raise DemoError(f"--seconds {self.seconds:g}: 90 to 86400 are accepted with --instances")
        if self.seed < 0:
            raise DemoError(f"--seed {self.seed}: a whole number from 0 is accepted")

    @property
    def peak_per_s(self) -> float:
        """Requests a second at the busiest hour."""
        return self.instances * PEAK_PER_INSTANCE_S


def pace(day_s: float) -> PoolPace:
    """The pool's settings in the time of the compressed day.

    The forecast learns at a fifth of the day's speed: one request here stands for some hundred of a real day,
    and learned at full speed their randomness would hide the day's course.
    """
    return PoolPace(
        period_s=1.0,
        cooldown_s=4.0,
        less_for_s=3.0,
        start_s=3.0,
        drain_s=2.0,
        stay_s=30.0,
        settle_s=1.0,
        forecast_quantile=0.9,
        survivors_load_max=0.95,
        day_s=max(5.0 * day_s, 1_500.0),
    )


def share_at(hour: float) -> float:
    """Of the busiest hour's rate: quiet at night, busiest in the afternoon."""
    wave = 0.5 - 0.5 * cos(2.0 * pi * (hour - QUIETEST_HOUR) / HOURS)
    return float(NIGHT_SHARE + (1.0 - NIGHT_SHARE) * wave**1.3)


def draw(options: DayOptions, day_s: float) -> tuple[TraceRequest, ...]:
    """The day's requests in order of arrival, as evenly spread as a whole day's look from afar."""
    rng = np.random.default_rng(options.seed)
    grid = np.linspace(0.0, day_s, 2_000)
    rates = options.peak_per_s * np.array([share_at(HOURS * t / day_s) for t in grid])
    expected = np.concatenate(([0.0], np.cumsum((rates[1:] + rates[:-1]) / 2.0 * np.diff(grid))))
    count = int(expected[-1])
    points = np.sort(np.arange(count) + rng.uniform(0.0, 1.5, count))
    times = np.interp(points[points < expected[-1]], expected, grid)
    return tuple(
        _as_short(r, float(t)) for r, t in zip(_lengths(len(times), options.seed), times, strict=True)
    )


def steady(rate_per_s: float, duration_s: float, seed: int) -> tuple[TraceRequest, ...]:
    """Requests of the same kind at one rate: the warm-up."""
    count = max(int(rate_per_s * duration_s), 1)
    drawn = _lengths(count, seed)
    return tuple(_as_short(request, n / rate_per_s) for n, request in enumerate(drawn))


def _lengths(count: int, seed: int) -> tuple[TraceRequest, ...]:
    """Lengths of the built-in conversations; their arrivals are not used."""
    drawn = workload.generate(max(count, 10) / 100.0, 125.0, seed)
    while len(drawn) < count:
        drawn = (*drawn, *workload.generate(max(count, 10) / 100.0, 125.0, seed + len(drawn)))
    return drawn[:count]


def _as_short(request: TraceRequest, arrival_s: float) -> TraceRequest:
    tokens = max(round(request.output_tokens * ANSWER_SHARE), 2)
    return TraceRequest(arrival_s, request.prompt_tokens, tokens)


def clock_of(day_s: float, elapsed_s: float) -> str:
    """The hour of the compressed day, as HH:MM."""
    minutes = int(HOURS * 60.0 * min(max(elapsed_s / day_s, 0.0), 1.0))
    return f"{minutes // 60 % 24:02}:{minutes % 60:02}"
