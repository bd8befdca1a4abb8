"""One replay of a sweep: what it is, what names it, and what comes of it as plain numbers."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cache
from math import isnan
from pathlib import Path
from typing import Any

import kvwatt
import kvwatt_sim
import kvwattd
from kvwatt_sim.recording import as_trace, load_recording
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.policies import policy
from kvwatt_sim.replay.scenario import Case, case, plant
from kvwatt_sim.traces import TraceError, TraceRequest, load_azure, load_mooncake, read_lines
from kvwatt_sim.workload import generate

BUILTIN = "builtin"  # the workload that needs no file
BUILTIN_RATE_PER_S, BUILTIN_S, BUILTIN_SEED = 6.0, 3600.0, 0

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """`trace`: a path, or `builtin`; `load`: share of the plant's capacity."""

    plant: str
    trace: str
    load: float
    slo: str
    policy: str
    seed: int

    def key(self, trace: tuple[TraceRequest, ...]) -> str:
        """Names the job, what is in its trace, and the code that runs it."""
        digest = hashlib.sha256(code_version().encode())
        named = {name: value for name, value in asdict(self).items() if name != "trace"}
        digest.update(repr((sorted(named.items()), _content(trace))).encode())
        return digest.hexdigest()[:24]


def open_trace(name: str) -> tuple[TraceRequest, ...]:
    """A trace of any known format, told apart by its content. Raises TraceError."""
    if name == BUILTIN:
        return generate(BUILTIN_RATE_PER_S, BUILTIN_S, BUILTIN_SEED)
    path = Path(name)
    if path.is_dir():
        return _long_enough(name, as_trace(load_recording(path)))
    begin = next((line for line in read_lines(path) if line.strip()), "").lstrip()
    if not begin.startswith("{"):
        return _long_enough(name, load_azure(path))
    if '"kind"' in begin:
        return _long_enough(name, as_trace(load_recording(path)))
    return _long_enough(name, load_mooncake(path))


def run_job(job: Job, trace: tuple[TraceRequest, ...]) -> Row:
    """Replays it. Raises ScenarioError, PolicyError."""
    setting = case(plant(job.plant), trace, job.load, job.slo, job.seed)
    return {**asdict(job), **row_of(setting, policy(job.policy)(setting))}


def row_of(setting: Case, outcome: Outcome) -> Row:
    """Energy, latencies and how far each promise was kept, in JSON's types; no quantile of nothing."""
    slo = setting.promises.slo
    limits = {"ttft": slo.ttft, "tbt": slo.tbt, "e2e": slo.e2e, "itl": slo.itl}
    return {
        "energy_j": outcome.energy_j,
        "duration_s": outcome.duration_s,
        "requests": len(outcome.served),
        "tokens": outcome.tokens,
        "steps": outcome.steps,
        "clock_changes": outcome.clock_changes,
        "attainment": outcome.attainment(slo),
        "limits_s": {name: target.limit_s for name, target in limits.items() if target is not None},
        "quantiles_s": {
            name: {f"{level:g}": None if isnan(value) else value for level, value in levels.items()}
            for name, levels in outcome.quantiles().items()
        },
    }


@cache
def code_version() -> str:
    """Changes with any source file of ours, so that results of other code are never taken over."""
    digest = hashlib.sha256()
    for package in (kvwatt, kvwattd, kvwatt_sim):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.suffix in {".py", ".c", ".h", ".toml"}:
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def _content(trace: tuple[TraceRequest, ...]) -> str:
    rows = [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _long_enough(name: str, trace: tuple[TraceRequest, ...]) -> tuple[TraceRequest, ...]:
    if len(trace) < 2 or trace[-1].arrival_s <= trace[0].arrival_s:
        raise TraceError(f"{name}: at least two requests at different times are needed")
    return trace
