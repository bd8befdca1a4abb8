"""What a kilowatt-hour costs and emits: one figure, or a time series in a CSV file.

The file has a header with `time` and one or both of `price_per_kwh` and `intensity_g_per_kwh`. A row holds
from its time (ISO 8601 with offset, or unix seconds) until the next; the last holds on. Where neither file
nor configuration says anything, cost is unknown, and shown so.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

J_PER_KWH = 3.6e6
MAX_ROWS = 1_000_000
PRICE, INTENSITY = "price_per_kwh", "intensity_g_per_kwh"

# A price may be negative where there is too much power; an intensity may not.
Price = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Intensity = Annotated[float, Field(ge=0, le=1e5, allow_inf_nan=False)]


class CostConfig(BaseModel):
    """Keys of [cost]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: Annotated[str, Field(min_length=1, max_length=8)] = "EUR"
    price_per_kwh: Price | None = None
    intensity_g_per_kwh: Intensity | None = None
    file: Path | None = None


class CostFileError(Exception):
    """Names the file, the line, the value and what is accepted."""


@dataclass(frozen=True, slots=True)
class Series:
    """A step function: `values[i]` holds from `starts_s[i]` (unix seconds, ascending)."""

    starts_s: tuple[float, ...]
    values: tuple[float, ...]

    def mean(self, from_s: float, to_s: float, before: float | None) -> float | None:
        """Over [from_s, to_s]; `before` is its value until it begins. None where that is unknown."""
        first = bisect_right(self.starts_s, from_s) - 1
        if first < 0 and before is None:
            return None
        if to_s <= from_s:
            return before if first < 0 else self.values[first]
        total, at_s = 0.0, from_s
        for i in range(first, len(self.starts_s)):
            value = before if i < 0 else self.values[i]
            until_s = min(self.starts_s[i + 1], to_s) if i + 1 < len(self.starts_s) else to_s
            total += (value or 0.0) * (until_s - at_s)
            at_s = until_s
            if at_s >= to_s:
                break
        return total / (to_s - from_s)


@dataclass(frozen=True, slots=True)
class Rates:
    """Price and intensity at any time."""

    currency: str = "EUR"
    price: float | None = None
    intensity: float | None = None
    prices: Series | None = None
    intensities: Series | None = None

    @property
    def known(self) -> bool:
        return any(v is not None for v in (self.price, self.intensity, self.prices, self.intensities))

    def price_per_kwh(self, from_s: float, to_s: float) -> float | None:
        return self.prices.mean(from_s, to_s, self.price) if self.prices else self.price

    def intensity_g_per_kwh(self, from_s: float, to_s: float) -> float | None:
        return self.intensities.mean(from_s, to_s, self.intensity) if self.intensities else self.intensity


@dataclass(frozen=True, slots=True)
class Bill:
    """`unpriced_j`: energy for which no price, or no intensity, is known; the sums leave it out."""

    money: float | None
    co2_g: float | None
    unpriced_j: float = 0.0


def bill(rates: Rates, parts: Iterable[tuple[float, float, float]]) -> Bill:
    """Of energy in parts (from, to in unix seconds, joules)."""
    money = co2_g = unpriced_j = 0.0
    any_price = any_intensity = False
    for from_s, to_s, joules in parts:
        price, intensity = rates.price_per_kwh(from_s, to_s), rates.intensity_g_per_kwh(from_s, to_s)
        if price is not None:
            any_price, money = True, money + price * joules / J_PER_KWH
        if intensity is not None:
            any_intensity, co2_g = True, co2_g + intensity * joules / J_PER_KWH
        if price is None and intensity is None:
            unpriced_j += joules
    return Bill(money if any_price else None, co2_g if any_intensity else None, unpriced_j)


def load_rates(config: CostConfig) -> Rates:
    """Reads the file, if one is named. Raises CostFileError."""
    found = _read(config.file) if config.file is not None else {}
    return Rates(
        currency=config.currency,
        price=config.price_per_kwh,
        intensity=config.intensity_g_per_kwh,
        prices=found.get(PRICE),
        intensities=found.get(INTENSITY),
    )


def _read(path: Path) -> dict[str, Series]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse(path, csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CostFileError(f"cost.file {path}: {error}") from error


def _parse(path: Path, rows: csv.DictReader[str]) -> dict[str, Series]:
    head = rows.fieldnames or ()
    names = [name for name in (PRICE, INTENSITY) if name in head]
    if "time" not in head or not names:
        accepted = f"a header with time and {PRICE} or {INTENSITY}"
        raise CostFileError(f"cost.file {path}: header {','.join(head)!r}: accepted is {accepted}")
    starts: list[float] = []
    columns: dict[str, list[float]] = {name: [] for name in names}
    for row in rows:
        where = f"cost.file {path}, line {rows.line_num}"
        if len(starts) >= MAX_ROWS:
            raise CostFileError(f"{where}: more than {MAX_ROWS} rows")
        starts.append(_time(row["time"], where, starts))
        for name in names:
            columns[name].append(_number(name, row[name], where))
    if not starts:
        raise CostFileError(f"cost.file {path}: no rows below the header")
    return {name: Series(tuple(starts), tuple(column)) for name, column in columns.items()}


def _time(text: str | None, where: str, before: Sequence[float]) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = _iso(text or "")
    if not math.isfinite(value):
        accepted = "unix seconds, or ISO 8601 with an offset such as 2026-01-31T15:00+01:00"
        raise CostFileError(f"{where}: time = {text!r}: accepted is {accepted}")
    if before and value <= before[-1]:
        raise CostFileError(f"{where}: time = {text!r}: later than the line before is needed")
    return value


def _iso(text: str) -> float:
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        return math.nan
    return when.timestamp() if when.tzinfo is not None else math.nan


def _number(name: str, text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    least = -1e6 if name == PRICE else 0.0
    if not (math.isfinite(value) and least <= value <= 1e6):
        raise CostFileError(f"{where}: {name} = {text!r}: a finite number from {least:g} on is needed")
    return value
