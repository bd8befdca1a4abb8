"""One way of admission on one load under KV pressure. Part of bench/cap_ladder.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from kvwatt.scheduling.cap_ladder import Ladder
from kvwatt.state import EngineShape, Slo, SloTarget
from kvwatt_sim.replay import scenario
from kvwatt_sim.replay.admission import Reservation, Worth
from kvwatt_sim.replay.controller import Controller, Drive, FixedClock
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.policies import kvwatt
from kvwatt_sim.replay.rivals.throttllem import ThrottLLeM
from kvwatt_sim.replay.scenario import Case
from kvwatt_sim.traces import TraceRequest, load_azure

TRACES = Path("../shared/data/traces")
CARD = scenario.plant("l20")
WINDOW_S = 200.0
FEWEST = 20  # requests; a window with fewer has no p99 worth the name
BACKLOG = 1500  # requests that are there at once, for the throughput
LONGEST = 0.9  # share of the pool; requests that need more are left out, alike for all
WATERMARK = 0.9
VLLM, OURS, WHOLE, CAP, MARK = "vLLM", "kvwatt", "learned, to the end", "cap 256", "90 % mark"
MEDIANS = "medians, 32 steps"  # what kvwatt did before
THROTTLLEM, THROTTLLEM_30 = "throttLL'eM", "throttLL'eM 30 %"

Seats = Callable[[VirtualPlant], int]
ARMS = (VLLM, OURS, MEDIANS, WHOLE, CAP, MARK)
CLOCK_ARMS = (VLLM, OURS, THROTTLLEM, THROTTLLEM_30)
SEATS: dict[str, Callable[[], Seats]] = {
    OURS: Worth,
    MEDIANS: Reservation,
    WHOLE: lambda: Reservation(horizon=None),
    CAP: lambda: Reservation(Ladder(256), horizon=None),
}
GATES = {THROTTLLEM: 0.0, THROTTLLEM_30: 0.3}  # p95 error of the lengths it is told


@dataclass(frozen=True, slots=True)
class Task:
    """`pool_tokens`: the KV cache. `load`: of the pool's capacity. `clocks`: under kvwatt's clock control."""

    trace: str
    pool_tokens: int
    load: float
    seed: int
    arm: str
    clocks: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What came of it; `mean_s` and `p99_s` per window. `computed`: tokens, recomputation included."""

    requests: int
    preemptions: int
    computed: int
    energy_j: float
    kept: float  # of the promise kept least
    all_mean_s: float
    all_p99_s: float
    ttft_p99_s: float
    mean_s: tuple[float, ...]
    p99_s: tuple[float, ...]
    backlog_per_s: float | None

    def as_json(self, task: Task) -> dict[str, object]:
        return {**asdict(task), **asdict(self)}


@dataclass
class Gated:
    """throttLL'eM's admission before another's clocks (None: driver default's)."""

    gate: ThrottLLeM
    clocks: Controller | None
    period_s: float = 0.05
    _looks: int = field(default=0, init=False)
    _held: int | None = field(default=None, init=False)

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        self.gate.target(now_s, plant)  # whose clock nobody takes
        if self.clocks is not None and self._looks % round(self.clocks.period_s / self.period_s) == 0:
            self._held = self.clocks.target(now_s, plant)
        self._looks += 1
        return self._held


def run_all(tasks: Sequence[Task], jobs: int) -> dict[Task, Told]:
    """All tasks in `jobs` processes, with a progress bar."""
    with ProcessPoolExecutor(jobs) as pool:
        return dict(zip(tasks, track(pool.map(run, tasks), f"{len(tasks)} runs", len(tasks)), strict=True))


def run(task: Task) -> Told:
    """The trace as it comes, and a backlog of its first requests."""
    case = case_of(task)
    plant, outcome = _served(task, case)
    waiting = replace(case, requests=tuple(replace(r, arrival_s=0.0) for r in case.requests[:BACKLOG]))
    at_once = None if task.clocks or task.arm in GATES else _served(task, waiting)[1]
    return _told(plant, outcome, case, at_once)


@lru_cache(maxsize=8)
def _pool(trace: str, pool_tokens: int) -> tuple[EngineShape, tuple[TraceRequest, ...], scenario.Capacity]:
    """The engine with its pool, who fits it, and what it serves with a p99 TTFT of 3 s at the top clock."""
    shape = scenario.shape_for(CARD, "paper")
    shape = replace(shape, num_blocks=pool_tokens // shape.block_size + 1)  # vLLM keeps one back
    whole = scenario.fitted(CARD, load_azure(TRACES / f"AzureLLMInferenceTrace_{trace}_2023.csv"))
    some = tuple(r for r in whole if r.prompt_tokens + r.output_tokens <= LONGEST * pool_tokens)
    return shape, some, scenario.capacity(CARD, shape, some)


def case_of(task: Task) -> Case:
    """Promises as in the preset `paper`, for the pool at its own capacity."""
    shape, trace, own = _pool(task.trace, task.pool_tokens)
    requests = scenario.thin(trace, task.load * own.rate_per_s, task.seed)
    slo = Slo(SloTarget(2.0 * own.ttft_s), SloTarget(0.2), SloTarget(own.e2e_s))
    until_s = scenario.horizon_s(requests)
    return Case(CARD, scenario.clocks(CARD), shape, requests, scenario.Promises(slo), until_s)


def _served(task: Task, case: Case) -> tuple[VirtualPlant, Outcome]:
    plant = VirtualPlant(CARD, case.shape, case.requests)
    if task.arm in SEATS:
        plant.seat(SEATS[task.arm]())
    if task.arm == MARK:
        plant.cap_admission(int(WATERMARK * (case.shape.num_blocks - 1)))
    clocks: Controller | None = kvwatt(case) if task.clocks else None
    if task.arm in GATES:
        controller: Controller = Gated(ThrottLLeM(case, GATES[task.arm]), clocks)
    else:
        controller = clocks or FixedClock(None)
    return plant, Drive(plant, controller).finish(case.until_s)


def _told(plant: VirtualPlant, outcome: Outcome, case: Case, at_once: Outcome | None) -> Told:
    served, latency = outcome.served, outcome.served.latencies()
    e2e, window = latency["e2e"], (served.arrival_s // WINDOW_S).astype(int)
    windows = [e2e[window == w] for w in np.unique(window) if np.sum(window == w) >= FEWEST]
    return Told(
        requests=len(served),
        preemptions=plant.preemptions,
        computed=plant.computed_tokens,
        energy_j=outcome.energy_j,
        kept=min(outcome.attainment(case.promises.slo).values()),
        all_mean_s=float(e2e.mean()),
        all_p99_s=_p99(e2e),
        ttft_p99_s=_p99(latency["ttft"]),
        mean_s=tuple(float(w.mean()) for w in windows),
        p99_s=tuple(_p99(w) for w in windows),
        backlog_per_s=None if at_once is None else at_once.tokens / at_once.served.last_s.max(),
    )


def _p99(values: npt.NDArray[np.float64]) -> float:
    return float(np.quantile(values, 0.99))
