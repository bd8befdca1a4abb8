"""Profile tables: what one engine step took and drew, by clock and load.

One row is one measured operating point. `kvwatt profile` writes the canonical columns; published
tables with `freq_mhz, batch, context_tokens, step_seconds` (decode) or `freq_mhz, input_tokens, seconds`
(prefill), and idle power as `state, power_w`, are read as well. Lines starting with # are notes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COLUMNS = ("clock_mhz", "tp", "decode_batch", "kv_tokens", "prefill_tokens", "step_time_s", "power_w", "kind")
KINDS = ("decode", "prefill", "mixed", "idle")


class ProfileError(ValueError):
    """A profile table cannot be used; the message names the row, the column and what is accepted."""


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One operating point. `power_w` is NaN where it was not measured; idle rows have no step time."""

    clock_mhz: float
    decode_batch: float
    kv_tokens: float
    prefill_tokens: float
    step_time_s: float
    power_w: float
    tp: int = 1
    kind: str = "decode"


@dataclass(frozen=True, slots=True)
class ProfileTable:
    """Busy operating points as columns of equal length, and idle power by clock."""

    clock_mhz: Floats
    decode_batch: Floats
    kv_tokens: Floats
    prefill_tokens: Floats
    step_time_s: Floats
    power_w: Floats
    tp: int
    idle_clock_mhz: Floats
    idle_power_w: Floats

    def __len__(self) -> int:
        return len(self.clock_mhz)

    @property
    def load(self) -> tuple[Floats, Floats, Floats]:
        """Decode batch, KV tokens and prefill tokens."""
        return self.decode_batch, self.kv_tokens, self.prefill_tokens

    def select(self, mask: npt.NDArray[np.bool_]) -> ProfileTable:
        """The busy points where `mask` holds; idle power is kept."""
        return ProfileTable(
            self.clock_mhz[mask],
            self.decode_batch[mask],
            self.kv_tokens[mask],
            self.prefill_tokens[mask],
            self.step_time_s[mask],
            self.power_w[mask],
            self.tp,
            self.idle_clock_mhz,
            self.idle_power_w,
        )


def parse_csv(text: str, name: str = "profile") -> list[ProfileRow]:
    """Rows of a profile in any accepted layout; `name` is used in error messages."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    skipped = text.count("\n#") + text.startswith("#")
    header, records = _table("\n".join(lines), name)
    convert = _layout(tuple(header), name)
    numbered = enumerate(records, 2 + skipped)
    converted = [convert(_Cells(record, f"{name}, line {number}")) for number, record in numbered]
    rows = [row for row in converted if row is not None]
    if not rows:
        raise ProfileError(f"{name}: no rows below the header")
    return rows


def _table(text: str, name: str) -> tuple[list[str], list[dict[str, str]]]:
    """Header and records as they stand."""
    reader = csv.DictReader(io.StringIO(text))
    try:
        return list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise ProfileError(f"{name}: not a table: {error}") from None


def parse_notes(text: str) -> dict[str, str]:
    """The `# key: value` lines that `kvwatt profile` puts above the header: hardware, vLLM version, model."""
    notes = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        key, found, value = line[1:].partition(":")
        if found:
            notes[key.strip()] = value.strip()
    return notes


def table_of(rows: Iterable[ProfileRow], tp: int | None = None) -> ProfileTable:
    """Columns from rows of one tensor-parallel size (`tp` selects one where the rows have several)."""
    kept = [row for row in rows if tp is None or row.tp == tp]
    sizes = sorted({row.tp for row in kept})
    if len(sizes) != 1:
        raise ProfileError(f"rows must have exactly one tp, got {sizes}; choose one with tp=")
    busy = [row for row in kept if row.kind != "idle"]
    idle = sorted((row for row in kept if row.kind == "idle"), key=lambda row: row.clock_mhz)
    return ProfileTable(
        _column(busy, "clock_mhz"),
        _column(busy, "decode_batch"),
        _column(busy, "kv_tokens"),
        _column(busy, "prefill_tokens"),
        _column(busy, "step_time_s"),
        _column(busy, "power_w"),
        sizes[0],
        _column(idle, "clock_mhz"),
        _column(idle, "power_w"),
    )


def format_row(row: ProfileRow) -> list[str]:
    """The row as CSV cells in the order of `COLUMNS`."""
    numbers = (row.decode_batch, row.kv_tokens, row.prefill_tokens, row.step_time_s, row.power_w)
    cells = ["" if math.isnan(number) else f"{number:.9g}" for number in numbers]
    return [f"{row.clock_mhz:g}", str(row.tp), *cells, row.kind]


def _column(rows: Sequence[ProfileRow], name: str) -> Floats:
    return np.array([getattr(row, name) for row in rows], dtype=np.float64)


Point = tuple[float, float, float, float]  # clock, decode batch, KV tokens, prefill tokens


def parse_points(text: str, name: str = "points") -> tuple[list[str], list[dict[str, str]], list[Point]]:
    """Header, records as they stand, and the operating points they describe (nothing measured needed)."""
    header, rows = _table(text, name)
    convert = _point_layout(set(header), name)
    records = [{key: row.get(key) or "" for key in header} for row in rows]
    if not records:
        raise ProfileError(f"{name}: no rows below the header")
    points = [convert(_Cells(record, f"{name}, line {line}")) for line, record in enumerate(records, 2)]
    return header, records, points


def _point_layout(header: set[str], name: str) -> Callable[[_Cells], Point]:
    if "clock_mhz" in header:
        return lambda cells: (
            cells.number("clock_mhz", 1),
            cells.number("decode_batch", default=0),
            cells.number("kv_tokens", default=0),
            cells.number("prefill_tokens", default=0),
        )
    if {"freq_mhz", "batch", "context_tokens"} <= header:
        return lambda cells: (
            cells.number("freq_mhz", 1),
            cells.number("batch"),
            cells.number("batch") * cells.number("context_tokens"),
            0.0,
        )
    if {"freq_mhz", "input_tokens"} <= header:
        return lambda cells: (cells.number("freq_mhz", 1), 0.0, 0.0, cells.number("input_tokens"))
    raise ProfileError(
        f"{name}: unknown columns {', '.join(sorted(header))}; accepted are clock_mhz with decode_batch, "
        "kv_tokens, prefill_tokens; or freq_mhz, batch, context_tokens; or freq_mhz, input_tokens"
    )


class _Cells:
    """One record, read as checked numbers."""

    def __init__(self, record: Mapping[str, str | None], where: str) -> None:
        self._record = record
        self._where = where

    def text(self, column: str) -> str:
        return (self._record.get(column) or "").strip()

    def number(self, column: str, lowest: float = 0.0, default: float | None = None) -> float:
        text = self.text(column)
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            raise ProfileError(f"{self._where}: {column} must be a number, got {text!r}") from None
        if not math.isfinite(value) or value < lowest:
            raise ProfileError(f"{self._where}: {column} must be finite and >= {lowest:g}, got {value}")
        return value

    def tp(self) -> int:
        return int(self.number("tp", 1, default=1))

    def kind(self) -> str:
        kind = self.text("kind")
        if kind not in KINDS:
            raise ProfileError(f"{self._where}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        return kind


_TINY = 1e-9  # step times and powers must be above zero


def _canonical(cells: _Cells) -> ProfileRow | None:
    kind = cells.kind()
    step_default = math.nan if kind == "idle" else None
    power_default = None if kind == "idle" else math.nan
    return ProfileRow(
        clock_mhz=cells.number("clock_mhz", 1),
        decode_batch=cells.number("decode_batch", default=0),
        kv_tokens=cells.number("kv_tokens", default=0),
        prefill_tokens=cells.number("prefill_tokens", default=0),
        step_time_s=cells.number("step_time_s", _TINY, default=step_default),
        power_w=cells.number("power_w", _TINY, default=power_default),
        tp=cells.tp(),
        kind=kind,
    )


def _published_decode(cells: _Cells) -> ProfileRow:
    batch = cells.number("batch", 1)
    return ProfileRow(
        clock_mhz=cells.number("freq_mhz", 1),
        decode_batch=batch,
        kv_tokens=batch * cells.number("context_tokens"),
        prefill_tokens=0.0,
        step_time_s=cells.number("step_seconds", _TINY),
        power_w=cells.number("power_w_busy_est", _TINY, default=math.nan),
        tp=cells.tp(),
    )


def _published_prefill(cells: _Cells) -> ProfileRow:
    return ProfileRow(
        clock_mhz=cells.number("freq_mhz", 1),
        decode_batch=0.0,
        kv_tokens=0.0,
        prefill_tokens=cells.number("input_tokens", 1),
        step_time_s=cells.number("seconds", _TINY),
        power_w=cells.number("power_w_busy_est", _TINY, default=math.nan),
        tp=cells.tp(),
        kind="prefill",
    )


def _published_static(cells: _Cells) -> ProfileRow | None:
    """Idle power at a locked clock; other states (parked, off) are no operating points."""
    state, _, clock = cells.text("state").partition("@")
    if state != "active_idle" or not clock.isdecimal():
        return None
    return ProfileRow(float(clock), 0, 0, 0, math.nan, cells.number("power_w", _TINY), kind="idle")


_Convert = Callable[[_Cells], ProfileRow | None]
_LAYOUTS: tuple[tuple[set[str], _Convert], ...] = (
    (set(COLUMNS) - {"tp"}, _canonical),
    ({"freq_mhz", "batch", "context_tokens", "step_seconds"}, _published_decode),
    ({"freq_mhz", "input_tokens", "seconds"}, _published_prefill),
    ({"state", "power_w"}, _published_static),
)


def _layout(header: tuple[str, ...], name: str) -> _Convert:
    for needed, convert in _LAYOUTS:
        if needed <= set(header):
            return convert
    accepted = "; or ".join(", ".join(sorted(needed)) for needed, _ in _LAYOUTS)
    raise ProfileError(f"{name}: unknown columns {', '.join(header)}; accepted are {accepted}")
