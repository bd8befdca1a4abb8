"""One engine's samples, read as numbers that were checked: nothing missing or odd is ever read as zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import inf

from kvwatt.state import Histogram
from kvwattd.telemetry.exposition import MetricsError, Series, number

MAX_REQUESTS = 1e6  # more running or waiting requests than any engine can hold
USAGE_TOLERANCE = 1e-9  # rounding of 1 - free / (blocks - 1)

Samples = list[tuple[Series, bytes]]


def grouped(samples: Iterable[tuple[Series, bytes]]) -> dict[str, Samples]:
    """The samples by series name."""
    found: dict[str, Samples] = {}
    for sample in samples:
        found.setdefault(sample[0].name, []).append(sample)
    return found


class Figures:
    """Names are without the engine's `prefix`; errors name them with it. Readings raise MetricsError."""

    def __init__(self, prefix: str, found: Mapping[str, Samples]) -> None:
        self._prefix = prefix
        self._found = found

    def __contains__(self, name: str) -> bool:
        return name in self._found

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._found)

    def samples(self, name: str) -> Samples:
        """Every sample of a series that is on the page. Raises KeyError."""
        return self._found[name]

    def single(self, name: str) -> float:
        """The only sample of this series."""
        found = self._found[name]
        if len(found) != 1:
            raise self._bad(name, f"{name} stands {len(found)} times on the page")
        return number(self._prefix + name, found[0][1])

    def whole(self, name: str, value: float) -> float:
        """`value` of this series, where it has no fraction."""
        if not value.is_integer():
            raise self._bad(name, f"{name} is {value}, need a whole number")
        return value

    def requests(self, name: str) -> int:
        """A number of requests, as an engine can hold them."""
        value = self.whole(name, self.single(name))
        if value > MAX_REQUESTS:
            raise self._bad(name, f"{name} is {value:g}, more than {MAX_REQUESTS:g}")
        return int(value)

    def ratio(self, name: str) -> float:
        """A share, 0 to 1."""
        value = self.single(name)
        if value > 1.0 + USAGE_TOLERANCE:
            raise self._bad(name, f"{name} is {value}, need 0..1")
        return min(value, 1.0)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """The samples of this series, told apart by one label."""
        values: dict[str, float] = {}
        for series, raw in self._found[name]:
            key = series.labels.get(label)
            if key is None or key in values:
                detail = f"{name} has {label}={key} twice" if key else f"{name} has no label {label}"
                raise self._bad(name, detail)
            values[key] = number(self._prefix + name, raw)
        return values

    def total(self, name: str) -> float:
        """The sum over all label sets of this series, each of them once."""
        seen: set[tuple[tuple[str, str], ...]] = set()
        for series, _ in self._found[name]:
            labels = tuple(sorted(series.labels.items()))
            if labels in seen:
                raise self._bad(name, f"{name} stands twice on the page with the same labels")
            seen.add(labels)
        return sum(number(self._prefix + name, raw) for _, raw in self._found[name])

    def histogram(self, name: str) -> Histogram:
        """The only histogram of this name."""
        return self._histogram(name, self._found[name])

    def histogram_total(self, name: str) -> Histogram:
        """The sum over all label sets of this histogram; their buckets must agree."""
        by_labels: dict[tuple[tuple[str, str], ...], Samples] = {}
        for sample in self._found[name]:
            labels = tuple(sorted((k, v) for k, v in sample[0].labels.items() if k != "le"))
            by_labels.setdefault(labels, []).append(sample)
        parts = [self._histogram(name, samples) for samples in by_labels.values()]
        if len({part.bounds for part in parts}) > 1:
            raise self._bad(name, f"histogram {name} has different buckets under different labels")
        cumulative = tuple(map(sum, zip(*(part.cumulative for part in parts), strict=True)))
        total, count = sum(part.sum for part in parts), sum(part.count for part in parts)
        return Histogram(parts[0].bounds, cumulative, total, count)

    def _histogram(self, name: str, found: Samples) -> Histogram:
        buckets: list[tuple[float, float]] = []
        ends: dict[str, float] = {}
        for series, raw in found:
            value = number(self._prefix + name + series.part, raw)
            if series.part == "_bucket":
                buckets.append((series.bound, value))
            elif series.part in ends:
                raise self._bad(name, f"{name}{series.part} stands twice on the page")
            else:
                ends[series.part] = value
        if len(ends) != 2 or not buckets or buckets[-1][0] != inf:
            raise MetricsError("truncated", (self._prefix + name,), f"histogram {name} is incomplete")
        bounds, cumulative = zip(*buckets, strict=True)
        histogram = Histogram(bounds, cumulative, ends["_sum"], ends["_count"])
        if not _consistent(histogram):
            raise self._bad(name, f"histogram {name} contradicts itself")
        return histogram

    def _bad(self, name: str, detail: str) -> MetricsError:
        return MetricsError("bad_value", (self._prefix + name,), detail)


def _consistent(h: Histogram) -> bool:
    rising = all(a < b for a, b in pairwise(h.bounds)) and all(a <= b for a, b in pairwise(h.cumulative))
    agrees = h.cumulative[-1] == h.count and (h.count > 0 or h.sum == 0)
    return rising and agrees and all(c.is_integer() for c in h.cumulative)
