"""What `kvwatt replay` does: options to jobs, jobs to rows, rows to a table and a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvwatt_sim.nvml.build import BuildError
from kvwatt_sim.replay import policies, scenario
from kvwatt_sim.replay.comparison import compare, tables
from kvwatt_sim.replay.jobs import Job, code_version, open_trace
from kvwatt_sim.replay.results import Results
from kvwatt_sim.replay.sweep import ClusterError, Traces, run_all
from kvwatt_sim.traces import TraceError

Value = TypeVar("Value")
USAGE, FAILED = 2, 1
MOST_SEEDS = 10_000


class ReplayFailed(Exception):  # noqa: N818 - reads as what happened
    """The replay cannot be done; `exit_code` 2 where the command line is to blame."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """As on the command line: lists are texts with commas."""

    plants: str
    traces: str
    loads: str
    slos: str
    policies: str
    seeds: str
    json_file: Path | None = None
    workers: int = 1
    scheduler: str | None = None


def list_policies(console: Console) -> None:
    """Their names, one a line."""
    for name in (*policies.POLICIES, "fixed-MHZ"):
        console.print(name)


def run_sweep(options: SweepOptions, console: Console) -> None:
    """Replays what is not done yet, prints the table and writes the file. Raises ReplayFailed."""
    with told_plainly():
        jobs = jobs_of(options)
        traces = {name: open_trace(name) for name in dict.fromkeys(job.trace for job in jobs)}
        with _side_file(options.json_file) as path, Results(path) as results:
            if results.broken:
                console.print(f"{path}: {results.broken} broken lines are left out and done again")
            _run(jobs, traces, results, options, console)
            rows = [results.rows[job.key(traces[job.trace])] for job in jobs]
        for table in tables(compare(rows)):
            console.print(table)
        if options.json_file is not None:
            document = {"version": 1, "code": code_version(), "rows": rows}
            options.json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _run(jobs: list[Job], traces: Traces, results: Results, options: SweepOptions, console: Console) -> None:
    left = [job for job in jobs if job.key(traces[job.trace]) not in results.rows]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("replay", total=len(jobs), completed=len(jobs) - len(left))
        for job, row in run_all(left, traces, options.workers, options.scheduler):
            results.add(job.key(traces[job.trace]), row)
            progress.update(task, advance=1, description=f"{job.policy} at {job.load:g}, seed {job.seed}")


def jobs_of(options: SweepOptions) -> list[Job]:
    """Every combination, each once. Raises ReplayFailed, ScenarioError, PolicyError."""
    plants, slos = _items("--plant", options.plants, str), _items("--slo", options.slos, str)
    loads, names = _items("--load", options.loads, float), _items("--policy", options.policies, str)
    for name in plants:
        scenario.plant(name)
    for slo, load in product(slos, loads):
        scenario.check(slo, load)
    for name in names:
        policies.policy(name)
    traces, seeds = _items("--trace", options.traces, str), seeds_of(options.seeds)
    return [Job(*each) for each in dict.fromkeys(product(plants, traces, loads, slos, names, seeds))]


def seeds_of(text: str) -> list[int]:
    """`1-4,7` gives 1, 2, 3, 4, 7. Raises ReplayFailed."""
    seeds: list[int] = []
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if not low.isdecimal() or (high and not high.isdecimal()):
            raise ReplayFailed(f"--seeds {text!r}: numbers and ranges like 1-4,7 are accepted", USAGE)
        first, last = int(low), int(high or low)
        if not first <= last < first + MOST_SEEDS:
            raise ReplayFailed(
                f"--seeds {part!r}: an ascending range of at most {MOST_SEEDS} is accepted", USAGE
            )
        seeds.extend(range(first, last + 1))
    return seeds


@contextmanager
def told_plainly() -> Iterator[None]:
    """Every foreseeable failure as ReplayFailed."""
    try:
        yield
    except (scenario.ScenarioError, policies.PolicyError) as error:
        raise ReplayFailed(str(error), USAGE) from error
    except (TraceError, ClusterError, BuildError) as error:
        raise ReplayFailed(str(error)) from error
    except OSError as error:
        raise ReplayFailed(f"{error.filename or 'file'}: {error.strerror or error}") from error


def _items(option: str, text: str, kind: Callable[[str], Value]) -> list[Value]:
    parts = [part.strip() for part in text.split(",")]
    try:
        return [kind(part) for part in parts if part] or _none(option, text)
    except ValueError as error:
        raise ReplayFailed(
            f"{option} {text!r}: a list of numbers is accepted, like 0.5,0.75", USAGE
        ) from error


def _none(option: str, text: str) -> list[Value]:
    raise ReplayFailed(f"{option} {text!r}: at least one is needed", USAGE)


@contextmanager
def _side_file(json_file: Path | None) -> Iterator[Path]:
    """Where results are kept as they come; without --json only for this run."""
    if json_file is not None:
        yield json_file.with_name(json_file.name + ".jsonl")
        return
    with TemporaryDirectory(prefix="kvwatt-replay-") as folder:
        yield Path(folder) / "results.jsonl"
