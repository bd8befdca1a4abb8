"""One policy on one case; its result is kept, so that a stopped run goes on. Part of bench/energy.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from rich.progress import track

import kvwatt
import kvwatt_sim
import kvwattd
from kvwatt_sim.demo.model import cache_dir
from kvwatt_sim.replay import scenario
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.policies import policy
from kvwatt_sim.replay.scenario import Case
from kvwatt_sim.traces import TraceRequest, load_azure, window

TRACES = Path("../shared/data/traces")
OURS = "kvwatt"


@dataclass(frozen=True, slots=True)
class Task:
    """`minutes`: how much of the thinned trace is served, from its start."""

    plant: str
    trace: str
    preset: str
    load: float
    seed: int
    minutes: float
    policy: str

    @property
    def case(self) -> tuple[str, str, str, float, int]:
        return self.plant, self.trace, self.preset, self.load, self.seed


class Row(TypedDict):
    """What a run cost and kept; `kept`: share within each promise."""

    energy_j: float
    requests: int
    tokens: int
    clock_changes: int
    kept: dict[str, float]


def case_of(task: Task) -> Case:
    """The case of a task, whatever its policy."""
    whole = scenario.case(scenario.plant(task.plant), trace(task.trace), task.load, task.preset, task.seed)
    requests = window(whole.requests, 60.0 * task.minutes)
    return replace(whole, requests=requests, until_s=scenario.horizon_s(requests))


@lru_cache(maxsize=4)
def trace(name: str) -> tuple[TraceRequest, ...]:
    """The Azure 2023 trace called `conv` or `code`."""
    return load_azure(TRACES / f"AzureLLMInferenceTrace_{name}_2023.csv")


def row_of(case: Case, outcome: Outcome) -> Row:
    return Row(
        energy_j=outcome.energy_j,
        requests=len(case.requests),
        tokens=outcome.tokens,
        clock_changes=outcome.clock_changes,
        kept=outcome.attainment(case.promises.slo),
    )


def run(task: Task) -> Row:
    """The task's result, from its file where there is one."""
    path = cache_dir() / "energy" / f"{_key(task)}.json"
    if path.exists():
        row: Row = json.loads(path.read_text(encoding="utf-8"))
        return row
    case = case_of(task)
    row = row_of(case, policy(task.policy)(case))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{hashlib.sha256(repr(task).encode()).hexdigest()[:8]}.tmp")
    unfinished.write_text(json.dumps(row), encoding="utf-8")
    unfinished.replace(path)
    return row


def run_all(tasks: Sequence[Task], jobs: int) -> dict[Task, Row]:
    """All tasks in `jobs` processes, with a progress bar."""
    with ProcessPoolExecutor(jobs) as pool:
        done = track(pool.map(run, tasks), f"{len(tasks)} runs", total=len(tasks))
        return dict(zip(tasks, done, strict=True))


def _key(task: Task) -> str:
    digest = hashlib.sha256(json.dumps(asdict(task)).encode())
    digest.update(_code(task.policy == OURS).encode())
    return digest.hexdigest()[:24]


@lru_cache(maxsize=2)
def _code(ours: bool) -> str:
    """A digest of the code that a result depends on; only ours depends on the predictor and the daemon."""
    simulator = Path(str(kvwatt_sim.__file__)).parent
    files = [simulator / "gpu.py", simulator / "traces.py", *(simulator / "cards").glob("*.toml")]
    files += [path for path in (simulator / "replay").rglob("*") if path.suffix in (".py", ".c", ".h")]
    if ours:
        files += Path(str(kvwatt.__file__)).parent.rglob("*.py")
        files += Path(str(kvwattd.__file__)).parent.glob("*.py")
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()
