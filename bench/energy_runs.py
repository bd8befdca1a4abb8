"""One policy on one case; its result is kept, so that a stopped run goes on. Part of bench/energy.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from rich.progress import track

from energy_code import code_of
from kvwatt_sim.demo.model import cache_dir
from kvwatt_sim.replay import scenario
from kvwatt_sim.replay.controller import replay
from kvwatt_sim.replay.oracle_bound import lower_bound_j
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.policies import kvwatt as kvwatt_controller
from kvwatt_sim.replay.policies import policy
from kvwatt_sim.replay.scenario import Case
from kvwatt_sim.traces import TraceRequest, load_azure, window

TRACES = Path("../shared/data/traces")
OURS, BOUND = "kvwatt", "bound"
LONGER = 1.5  # answers of the second half, in the variant `lengths`
STEP = 3.0  # the rate of the second half over that of the first, in the variant `step`
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Task:
    """`minutes`: how much of the thinned trace is served, from its start.

    `variant`: `lengths`, from half-time on answers are LONGER; `step`, up to half-time the load is 1 / STEP
    of `load`; and, for ours, `switch-0`, clocks switch in no time; `bias`, predicted times are 10 % too low.
    """

    plant: str
    trace: str
    preset: str
    load: float
    seed: int
    minutes: float
    policy: str
    variant: str = ""


class Row(TypedDict):
    """What a run cost and kept; `kept`: share within each promise.

    `minute`: the share kept least among those that arrived in the minute after half-time."""

    energy_j: float
    requests: int
    tokens: int
    clock_changes: int
    kept: dict[str, float]
    minute: NotRequired[float]
    decision_mean_s: NotRequired[float]
    decision_p99_s: NotRequired[float]


def worst(row: Row) -> float:
    """The promise kept least."""
    return min(row["kept"].values())


def case_of(task: Task) -> Case:
    """The case of a task, whatever its policy."""
    whole = _cut(task, task.load)
    half_s = _half_s(task)
    requests = whole.requests
    if task.variant == "lengths":
        requests = tuple(
            r if r.arrival_s < half_s else replace(r, output_tokens=round(LONGER * r.output_tokens))
            for r in requests
        )
    if task.variant == "step":
        before = _cut(task, task.load / STEP).requests
        requests = (
            *(r for r in before if r.arrival_s < half_s),
            *(r for r in requests if r.arrival_s >= half_s),
        )
    return replace(whole, requests=requests)


def _cut(task: Task, load: float) -> Case:
    case = scenario.case(scenario.plant(task.plant), trace(task.trace), load, task.preset, task.seed)
    requests = window(case.requests, 60.0 * task.minutes)
    return replace(case, requests=requests, until_s=scenario.horizon_s(requests))


def _half_s(task: Task) -> float:
    return 30.0 * task.minutes


@lru_cache(maxsize=4)
def trace(name: str) -> tuple[TraceRequest, ...]:
    """The Azure 2023 trace called `conv` or `code`."""
    return load_azure(TRACES / f"AzureLLMInferenceTrace_{name}_2023.csv")


def run(task: Task) -> Row:
    """The task's result, from its file where there is one."""
    path = cache_dir() / "energy" / f"{_key(task)}.json"
    if path.exists():
        row: Row = json.loads(path.read_text(encoding="utf-8"))
        return row
    row = _fresh(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(row), encoding="utf-8")
    unfinished.replace(path)
    return row


def run_all(tasks: Sequence[Task], jobs: int) -> dict[Task, Row]:
    """All tasks in `jobs` processes, with a progress bar."""
    with ProcessPoolExecutor(jobs) as pool:
        done = track(pool.map(run, tasks), f"{len(tasks)} runs", total=len(tasks))
        return dict(zip(tasks, done, strict=True))


def _fresh(task: Task) -> Row:
    case = case_of(task)
    if task.policy == BOUND:
        tokens = sum(r.output_tokens for r in case.requests)
        return Row(
            energy_j=lower_bound_j(case),
            requests=len(case.requests),
            tokens=tokens,
            clock_changes=0,
            kept={BOUND: 1.0},
        )
    if task.policy == OURS:
        return _ours(task, case)
    return _row(task, case, policy(task.policy)(case))


def _ours(task: Task, case: Case) -> Row:
    controller = kvwatt_controller(case)
    latency_s = controller.switch_latency_s
    if task.variant == "switch-0":
        latency_s = 0.0
        controller = replace(controller, switch_latency_s=latency_s)
    if task.variant == "bias":
        model = controller.model
        controller = replace(controller, model=replace(model, step_s=0.9 * model.step_s))
    row = _row(task, case, replay(case.card, case.shape, case.requests, controller, case.until_s, latency_s))
    spent = controller.run.durations
    row["decision_mean_s"] = spent.sum_s / max(spent.count, 1)
    row["decision_p99_s"] = spent.quantile_s(0.99) or 0.0
    return row


def _row(task: Task, case: Case, outcome: Outcome) -> Row:
    row = Row(
        energy_j=outcome.energy_j,
        requests=len(case.requests),
        tokens=outcome.tokens,
        clock_changes=outcome.clock_changes,
        kept=outcome.attainment(case.promises.slo),
    )
    if task.variant == "step":
        row["minute"] = _kept_in_minute(case, outcome, _half_s(task))
    return row


def _kept_in_minute(case: Case, outcome: Outcome, from_s: float) -> float:
    served = outcome.served
    mine = (served.arrival_s >= from_s) & (served.arrival_s < from_s + MINUTE_S)
    some = replace(served, **{name: getattr(served, name)[mine] for name in served.__slots__})
    slo = replace(case.promises.slo, itl=None)  # gaps are not told by request
    kept = replace(outcome, served=some).attainment(slo)
    return float(np.min(list(kept.values())))


def _key(task: Task) -> str:
    digest = hashlib.sha256(json.dumps(asdict(task)).encode())
    digest.update(code_of(task.policy).encode())
    return digest.hexdigest()[:24]
