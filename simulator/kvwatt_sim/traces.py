"""Request traces: arrival times and token counts, no text.

Sources of the formats. Azure: Azure/AzurePublicDataset, "LLM inference trace 2023" (Splitwise, ISCA 2024):
CSV with `TIMESTAMP,ContextTokens,GeneratedTokens`. Mooncake: kvcache-ai/Mooncake (FAST 2025): a JSON object
a line with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`, which are not used here.
Our own recordings: `kvwattd.recording.lines`.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Protocol

import msgspec


class _Rows(Protocol):
    """What csv.reader returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


class _MooncakeRow(msgspec.Struct):
    timestamp: int  # ms
    input_length: int
    output_length: int


_MOST_TOKENS = 1 << 40
_LATEST_MS = 1 << 53
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A trace file that cannot be used; the message names the line, the column and the value."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: seconds after the trace's start, tokens in, tokens out."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.arrival_s < inf:
            raise ValueError(f"arrival_s must be at least 0 and finite, got {self.arrival_s}")
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(
                f"token counts must be at least 1, got {self.prompt_tokens} in and {self.output_tokens} out"
            )


def load_azure(path: Path) -> tuple[TraceRequest, ...]:
    """Read an Azure 2023 trace; the first request arrives at 0 s.

    Raises TraceError for a file that is missing, empty, has other columns, a value that is not what
    its column holds, or rows out of order.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return _read_rows(path, csv.reader(file))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: not a CSV text file: {error}") from error


def load_mooncake(path: Path) -> tuple[TraceRequest, ...]:
    """Read a Mooncake trace; the first request arrives at 0 s.

    Raises TraceError for a file that is missing, empty, holds a line that is no such object, a value that
    is not what its key holds, or lines out of order.
    """
    found: list[tuple[int, TraceRequest]] = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            found.append(_mooncake_request(f"{path}: line {number}", line, found))
    if not found:
        raise TraceError(f"{path}: no requests")
    return tuple(request for _, request in found)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file. Raises TraceError."""
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not a text file: {error}") from error


def _mooncake_request(
    where: str, line: str, before: Sequence[tuple[int, TraceRequest]]
) -> tuple[int, TraceRequest]:
    """Milliseconds on the trace's own clock, and the request counted from the first one."""
    try:
        row = msgspec.json.decode(line, type=_MooncakeRow)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TraceError(
            f"{where}: {error}; expected an object with timestamp (ms), input_length and output_length"
        ) from error
    first_ms = before[0][0] if before else row.timestamp
    if not 0 <= row.timestamp < _LATEST_MS:
        raise TraceError(f"{where}: timestamp {str(row.timestamp)[:40]} is not a number of milliseconds")
    if before and row.timestamp < before[-1][0]:
        raise TraceError(f"{where}: timestamp {row.timestamp} lies before the line above")
    for name in ("input_length", "output_length"):
        if not 1 <= getattr(row, name) < _MOST_TOKENS:
            raise TraceError(f"{where}: {name} {getattr(row, name)} is not a token count from 1")
    arrival_s = (row.timestamp - first_ms) / 1000.0
    return row.timestamp, TraceRequest(arrival_s, row.input_length, row.output_length)


def thin(requests: Sequence[TraceRequest], ratio: float, seed: int) -> tuple[TraceRequest, ...]:
    """Keep each request with probability `ratio`: a lower load with the same lengths and the same day."""
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
    rng = random.Random(seed)
    return tuple(request for request in requests if rng.random() < ratio)


def scale_rate(requests: Sequence[TraceRequest], factor: float) -> tuple[TraceRequest, ...]:
    """The same requests arriving `factor` times as fast."""
    if not 0.0 < factor < inf:
        raise ValueError(f"factor must be positive and finite, got {factor}")
    return tuple(replace(request, arrival_s=request.arrival_s / factor) for request in requests)


def window(
    requests: Sequence[TraceRequest], duration_s: float, start_s: float = 0.0
) -> tuple[TraceRequest, ...]:
    """The requests that arrive in [start_s, start_s + duration_s), counted from `start_s`."""
    return tuple(
        replace(request, arrival_s=request.arrival_s - start_s)
        for request in requests
        if start_s <= request.arrival_s < start_s + duration_s
    )


def mean_rate_per_s(requests: Sequence[TraceRequest]) -> float:
    """Requests per second between the first and the last arrival."""
    if len(requests) < 2 or requests[-1].arrival_s <= requests[0].arrival_s:
        raise ValueError("a rate needs at least two requests at different times")
    return (len(requests) - 1) / (requests[-1].arrival_s - requests[0].arrival_s)


def at_rate(requests: Sequence[TraceRequest], rate_per_s: float, seed: int) -> tuple[TraceRequest, ...]:
    """The trace at another mean rate: thinned when it is too fast, sped up when it is too slow."""
    ratio = rate_per_s / mean_rate_per_s(requests)
    return thin(requests, ratio, seed) if ratio <= 1.0 else scale_rate(requests, ratio)


def _read_rows(path: Path, rows: _Rows) -> tuple[TraceRequest, ...]:
    header = next(rows, None)
    if header is None:
        raise TraceError(f"{path}: empty; expected the columns {', '.join(AZURE_COLUMNS)}")
    names = [name.strip() for name in header]
    missing = [name for name in AZURE_COLUMNS if name not in names]
    if missing:
        raise TraceError(
            f"{path}: line 1: no column {', '.join(missing)}; found {', '.join(names) or 'nothing'}; "
            f"expected {', '.join(AZURE_COLUMNS)}"
        )
    places = [names.index(name) for name in AZURE_COLUMNS]
    requests: list[TraceRequest] = []
    first: datetime | None = None
    for row in rows:
        if not row:
            continue
        where = f"{path}: line {rows.line_num}"
        if len(row) <= max(places):
            raise TraceError(f"{where}: {len(row)} values; expected {len(names)}")
        time_text, prompt_text, output_text = (row[place].strip() for place in places)
        at = _timestamp(where, time_text)
        first = at if first is None else first
        arrival_s = (at - first).total_seconds()
        if arrival_s < (requests[-1].arrival_s if requests else 0.0):
            raise TraceError(
                f"{where}: TIMESTAMP {time_text!r} lies before the row above; rows must be in order"
            )
        requests.append(
            TraceRequest(
                arrival_s,
                _tokens(where, "ContextTokens", prompt_text),
                _tokens(where, "GeneratedTokens", output_text),
            )
        )
    if not requests:
        raise TraceError(f"{path}: no requests below the header")
    return tuple(requests)


def _timestamp(where: str, text: str) -> datetime:
    # The files carry 100 ns; datetime carries microseconds and refuses a seventh digit on 3.11.
    whole, dot, fraction = text.partition(".")
    expected = f"{where}: TIMESTAMP {text!r} is not a time; expected like 2023-11-16 18:15:46.6805900"
    try:
        at = datetime.fromisoformat(whole + dot + fraction[:6].ljust(6, "0") if dot else whole)
    except ValueError as error:
        raise TraceError(expected) from error
    if at.tzinfo is not None:
        raise TraceError(f"{expected}, without a time zone")
    return at


def _tokens(where: str, column: str, text: str) -> int:
    try:
        tokens = int(text)
    except ValueError:
        tokens = 0
    if tokens < 1:
        raise TraceError(f"{where}: {column} {text!r} is not a token count; expected a whole number from 1")
    return tokens
