"""Recordings as the daemon writes them, read back: requests, GPU readings and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path

from kvwatt_sim.traces import TraceError, TraceRequest, read_lines
from kvwattd.recording.lines import FILE_NAME, VERSION, GpuLine, Line, RequestLine, RunLine, decode, time_of

_MOST_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True)
class Recorded:
    """One instance over the recorded time. `requests` in order of arrival, `gpu` in order of time."""

    instance: str
    run: RunLine
    requests: tuple[RequestLine, ...]
    gpu: tuple[GpuLine, ...]
    energy_j: float | None  # None: fewer than two readings
    span_s: tuple[float, float]  # first arrival or reading, last finish or reading


def load_recording(path: Path) -> tuple[Recorded, ...]:
    """The instances of a recorded day (a file) or of all days in a folder, by name.

    The last line of a file may be cut off, where a daemon was killed. Raises TraceError for anything else
    that is not a recording, with file and line.
    """
    files = sorted(p for p in _listed(path) if FILE_NAME.fullmatch(p.name)) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"{path}: no recording; expected files like kvwatt-2026-01-31.jsonl")
    lines = [line for file in files for line in _lines(file)]
    runs: dict[str, RunLine] = {}
    for line in lines:
        if isinstance(line, RunLine):
            runs.setdefault(line.instance, line)
    unknown = sorted({line.instance for line in lines} - set(runs))
    if unknown:
        raise TraceError(f"{path}: instance {unknown[0]!r} has requests or readings but no run line")
    found = (_instance(run, lines) for _, run in sorted(runs.items()))
    kept = tuple(recorded for recorded in found if recorded.requests)
    if not kept:
        raise TraceError(f"{path}: no finished requests")
    return kept


def as_trace(recorded: Sequence[Recorded]) -> tuple[TraceRequest, ...]:
    """The requests of all given instances together, counted from the first arrival."""
    lines = sorted((line for r in recorded for line in r.requests), key=lambda line: line.arrival_s)
    start_s = lines[0].arrival_s if lines else 0.0
    return tuple(
        TraceRequest(line.arrival_s - start_s, line.prompt_tokens, line.output_tokens) for line in lines
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise TraceError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _lines(file: Path) -> Iterator[Line]:
    *whole, cut = read_lines(file)
    for number, text in enumerate(whole, 1):
        if not text.strip():
            continue
        try:
            line = decode(text)
            _check(line)
        except ValueError as error:
            raise TraceError(f"{file}: line {number}: {error}") from error
        yield line
    del cut  # what follows the last line end was not written to its end


def _check(line: Line) -> None:
    if not 0.0 <= time_of(line) < inf:
        raise ValueError(f"time {time_of(line)} is not a number of seconds since 1970")
    if isinstance(line, RunLine):
        _check_run(line)
    if isinstance(line, RequestLine):
        _check_request(line)
    if isinstance(line, GpuLine):
        for name in ("power_w", "energy_j"):
            if not 0.0 <= getattr(line, name) < inf:
                raise ValueError(f"{name} {getattr(line, name)}: a finite number >= 0 is needed")


def _check_run(line: RunLine) -> None:
    if line.version != VERSION:
        raise ValueError(f"version {line.version}: {VERSION} is accepted")
    for name in ("gpus", "max_num_seqs", "max_num_batched_tokens", "num_blocks", "block_size"):
        if not 1 <= getattr(line, name) < _MOST_TOKENS:
            raise ValueError(f"{name} {getattr(line, name)}: a whole number from 1 is needed")
    for name, limit_s in line.promised_s.items():
        if not 0.0 < limit_s < inf:
            raise ValueError(f"promised_s {name} {limit_s}: a positive number of seconds is needed")


def _check_request(line: RequestLine) -> None:
    for name in ("prompt_tokens", "output_tokens"):
        if not 1 <= getattr(line, name) < _MOST_TOKENS:
            raise ValueError(f"{name} {getattr(line, name)} is not a token count from 1")
    for name in ("arrival_s", "ttft_s", "e2e_s", "tbt_s"):
        value = getattr(line, name)
        if value is not None and not (isfinite(value) and value >= 0.0):
            raise ValueError(f"{name} {value}: a finite number >= 0 is needed")


def _instance(run: RunLine, lines: Sequence[Line]) -> Recorded:
    mine = [line for line in lines if line.instance == run.instance]
    requests = sorted((x for x in mine if isinstance(x, RequestLine)), key=lambda x: x.arrival_s)
    gpu = sorted((x for x in mine if isinstance(x, GpuLine)), key=lambda x: x.at_s)
    times = [*(r.arrival_s for r in requests), *(time_of(r) for r in requests), *(g.at_s for g in gpu)]
    span_s = (min(times), max(times)) if times else (run.at_s, run.at_s)
    return Recorded(run.instance, run, tuple(requests), tuple(gpu), _energy_j(gpu), span_s)


def _energy_j(gpu: Sequence[GpuLine]) -> float | None:
    """Joules between the first and the last reading; where the count begins anew a run began."""
    if len(gpu) < 2:
        return None
    counted = ((a.energy_j, b.energy_j) for a, b in pairwise(gpu))
    return sum(later - earlier if later >= earlier else later for earlier, later in counted)
