"""vLLM's Prometheus page to a validated EngineSnapshot, or a refusal that says why.

Every number is checked before it is used: counts are whole, usage lies in 0..1, histograms are complete,
cumulative and agree with their count. Nothing missing is ever read as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf

from kvwatt.state import EngineSnapshot, Histogram
from kvwattd.telemetry import layouts
from kvwattd.telemetry.exposition import MetricsError, Series, number, samples
from kvwattd.telemetry.layouts import HISTOGRAMS, Layout

__all__ = ["LayoutReport", "MetricsError", "counters_reset", "parse", "self_test"]

MAX_REQUESTS = 1e6  # more running or waiting requests than any engine can hold
USAGE_TOLERANCE = 1e-9  # rounding of 1 - free / (blocks - 1)

_Samples = list[tuple[Series, bytes]]
_Engine = tuple[str, str]  # engine label, model_name label


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """What a page offers. Control is refused unless `layout` is set."""

    layout: str | None
    versions: str  # of the layout, or of the closest one
    missing: tuple[str, ...]  # series the closest layout needs and the page lacks
    absent_optional: tuple[str, ...]
    engines: tuple[_Engine, ...]  # (engine, model_name) pairs on the page

    @property
    def accepted(self) -> bool:
        """Whether the page can be used for control."""
        return self.layout is not None


def parse(
    text: bytes, observed_s: float, engine: str | None = None, model_name: str | None = None
) -> EngineSnapshot:
    """The snapshot of one engine; `engine` and `model_name` select among several on one page.

    Raises MetricsError.
    """
    page = list(samples(text))
    chosen = _choose_engine(page, engine, model_name)
    mine = _group(page, chosen)
    layout = layouts.matching(frozenset(mine))
    if layout is None:
        raise _missing(frozenset(mine))
    return _snapshot(mine, layout, chosen, observed_s)


def self_test(text: bytes) -> LayoutReport:
    """Which layout the page has and what it lacks. Raises MetricsError for a page that cannot be read."""
    page = list(samples(text))
    present = frozenset(series.name for series, _ in page)
    layout = layouts.matching(present)
    nearest, missing = layouts.closest(present)
    return LayoutReport(
        layout=layout.name if layout else None,
        versions=(layout or nearest).versions,
        missing=() if layout else tuple("vllm:" + name for name in missing),
        absent_optional=tuple("vllm:" + name for name in layouts.OPTIONAL if name not in present),
        engines=_engines(page),
    )


def counters_reset(previous: EngineSnapshot, current: EngineSnapshot) -> bool:
    """Whether a counter or bucket went back, or the buckets are others: the engine restarted.

    Differences between the two then mean nothing. Totals alone do not tell: after a long silence the new
    engine may have served more than the old one had.
    """
    before, now = _histograms(previous), _histograms(current)
    if any(old.bounds != new.bounds for old, new in zip(before, now, strict=True)):
        return True
    return any(new < old for old, new in zip(_counters(previous), _counters(current), strict=True))


def _histograms(snapshot: EngineSnapshot) -> tuple[Histogram, ...]:
    return (
        snapshot.iterations,
        snapshot.prompt_lengths,
        snapshot.generation_lengths,
        snapshot.ttft_s,
        snapshot.tbt_s,
        snapshot.itl_s,
        snapshot.e2e_s,
    )


def _counters(snapshot: EngineSnapshot) -> tuple[float, ...]:
    histograms = _histograms(snapshot)
    return (
        snapshot.prompt_tokens_total,
        snapshot.prompt_tokens_cached_total,
        snapshot.generation_tokens_total,
        snapshot.preemptions_total,
        snapshot.requests_finished_total,
        *(h.sum for h in histograms),
        *(count for h in histograms for count in _per_bucket(h)),
    )


def _per_bucket(h: Histogram) -> tuple[float, ...]:
    return tuple(high - low for low, high in pairwise((0.0, *h.cumulative)))


def _engines(page: _Samples) -> tuple[_Engine, ...]:
    found = {(s.engine or "0", s.model_name or "") for s, _ in page if s.name == layouts.RUNNING}
    return tuple(sorted(found))


def _choose_engine(page: _Samples, engine: str | None, model_name: str | None) -> _Engine:
    """Several engines (data parallel) share a page: never sum them, never take just any."""
    found = _engines(page)
    if not found:
        raise _missing(frozenset(series.name for series, _ in page))
    if not all(model for _, model in found):
        name = "vllm:" + layouts.RUNNING
        raise MetricsError("missing_label", (name,), f"{name} has no label model_name")
    fitting = [f for f in found if engine in (None, f[0]) and model_name in (None, f[1])]
    if len(fitting) == 1:
        return fitting[0]
    names = tuple(f"engine={e} model_name={m}" for e, m in found)
    asked = f"engine={engine or 'any'} model_name={model_name or 'any'}"
    kind = "ambiguous_engine" if fitting else "unknown_engine"
    raise MetricsError(kind, names, f"asked for {asked}, the page has {'; '.join(names)}")


def _group(page: _Samples, chosen: _Engine) -> dict[str, _Samples]:
    """The chosen engine's samples by series name; a series without a label belongs to every engine."""
    mine: dict[str, _Samples] = {}
    for sample in page:
        series = sample[0]
        if series.engine in (None, chosen[0]) and series.model_name in (None, chosen[1]):
            mine.setdefault(series.name, []).append(sample)
    return mine


def _missing(present: frozenset[str]) -> MetricsError:
    nearest, missing = layouts.closest(present)
    names = tuple("vllm:" + name for name in missing)
    if not present:
        return MetricsError("not_vllm", names, "the page has no vLLM metrics")
    return MetricsError(
        "missing_series", names, f"closest layout is vLLM {nearest.versions}; missing {', '.join(names)}"
    )


def _snapshot(
    mine: dict[str, _Samples], layout: Layout, chosen: _Engine, observed_s: float
) -> EngineSnapshot:
    histograms = {name: _histogram(name, found) for name, found in mine.items() if name in HISTOGRAMS}
    block_size, num_blocks = _cache_config(mine[layouts.CACHE_CONFIG])
    return EngineSnapshot(
        observed_s=observed_s,
        model_name=chosen[1],
        engine=chosen[0],
        running=_requests(layouts.RUNNING, mine),
        waiting=_requests(layouts.WAITING, mine),
        waiting_for_capacity=_waiting_for_capacity(mine, layout),
        kv_usage=_usage(layout.kv_usage, mine),
        block_size=block_size,
        num_blocks=num_blocks,
        asleep=_asleep(mine),
        prompt_tokens_total=_single(layouts.PROMPT_TOKENS, mine),
        prompt_tokens_cached_total=_single(layout.cached, mine) if layout.cached else 0.0,
        generation_tokens_total=_single(layouts.GENERATION_TOKENS, mine),
        preemptions_total=_single(layouts.PREEMPTIONS, mine),
        requests_finished_total=sum(_by_label(layouts.FINISHED, "finished_reason", mine).values()),
        iterations=histograms[layouts.ITERATIONS],
        prompt_lengths=histograms[layouts.PROMPT_LENGTHS],
        generation_lengths=histograms[layouts.GENERATION_LENGTHS],
        ttft_s=histograms[layouts.TTFT],
        tbt_s=histograms[layout.tbt or layout.itl],
        itl_s=histograms[layout.itl],
        e2e_s=histograms[layouts.E2E],
        flops_total=_estimate((layouts.FLOPS,), mine),
        bytes_total=_estimate(layouts.TRAFFIC, mine),
    )


def _estimate(names: tuple[str, ...], mine: dict[str, _Samples]) -> float | None:
    """The sum of estimates; None where one is missing or is no number: no reason to refuse a page."""
    if not all(name in mine for name in names):
        return None
    try:
        return sum(_single(name, mine) for name in names)
    except MetricsError:
        return None


def _single(name: str, mine: dict[str, _Samples]) -> float:
    found = mine[name]
    if len(found) != 1:
        raise MetricsError("bad_value", ("vllm:" + name,), f"{name} stands {len(found)} times on the page")
    return number("vllm:" + name, found[0][1])


def _whole(name: str, value: float) -> float:
    if not value.is_integer():
        raise MetricsError("bad_value", (name,), f"{name} is {value}, need a whole number")
    return value


def _requests(name: str, mine: dict[str, _Samples]) -> int:
    value = _whole("vllm:" + name, _single(name, mine))
    if value > MAX_REQUESTS:
        raise MetricsError("bad_value", ("vllm:" + name,), f"{name} is {value:g}, more than {MAX_REQUESTS:g}")
    return int(value)


def _by_label(name: str, label: str, mine: dict[str, _Samples]) -> dict[str, float]:
    values: dict[str, float] = {}
    for series, raw in mine[name]:
        key = series.labels.get(label)
        if key is None or key in values:
            detail = f"{name} has {label}={key} twice" if key else f"{name} has no label {label}"
            raise MetricsError("bad_value", ("vllm:" + name,), detail)
        values[key] = number("vllm:" + name, raw)
    return values


def _waiting_for_capacity(mine: dict[str, _Samples], layout: Layout) -> int:
    if layout.waiting_by_reason is None:
        return 0
    reasons = _by_label(layout.waiting_by_reason, "reason", mine)
    name = f'vllm:{layout.waiting_by_reason}{{reason="capacity"}}'
    if "capacity" not in reasons:
        raise MetricsError("missing_series", (name,), f"missing {name}")
    return int(_whole(name, min(reasons["capacity"], MAX_REQUESTS)))


def _usage(name: str, mine: dict[str, _Samples]) -> float:
    usage = _single(name, mine)
    if usage > 1.0 + USAGE_TOLERANCE:
        raise MetricsError("bad_value", ("vllm:" + name,), f"{name} is {usage}, need 0..1")
    return min(usage, 1.0)


def _asleep(mine: dict[str, _Samples]) -> bool:
    """Versions without the gauge are taken as awake: a sleeping engine runs nothing that could suffer."""
    if layouts.SLEEP_STATE not in mine:
        return False
    return _by_label(layouts.SLEEP_STATE, "sleep_state", mine).get("awake", 1.0) == 0.0


def _cache_config(found: _Samples) -> tuple[int, int]:
    """Block size and effective number of blocks of the KV cache.

    Where vLLM states the cache's size in tokens it counts: with several KV cache groups (hybrid models)
    blocks x block size would overstate the room.
    """
    name = "vllm:" + layouts.CACHE_CONFIG
    if len(found) != 1:
        raise MetricsError("bad_value", (name,), f"{name} stands {len(found)} times for this engine")
    labels = found[0][0].labels
    block_size = _label_count(name, "block_size", labels)
    blocks = _label_count(name, "num_gpu_blocks", labels)
    if labels.get("kv_cache_size_tokens", "None") == "None":
        return block_size, blocks
    tokens = _label_count(name, "kv_cache_size_tokens", labels)
    return block_size, max(min(blocks, tokens // block_size), 1)


def _label_count(name: str, label: str, labels: dict[str, str]) -> int:
    text = labels.get(label, "")
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) < 2**53):
        raise MetricsError("bad_value", (name,), f"{name} has {label}={text[:40]!r}, need a whole number > 0")
    return int(text)


def _histogram(name: str, found: _Samples) -> Histogram:
    full = "vllm:" + name
    buckets: list[tuple[float, float]] = []
    ends: dict[str, float] = {}
    for series, raw in found:
        value = number(full + series.part, raw)
        if series.part == "_bucket":
            buckets.append((series.bound, value))
        elif series.part in ends:
            raise MetricsError("bad_value", (full,), f"{name}{series.part} stands twice on the page")
        else:
            ends[series.part] = value
    if len(ends) != 2 or not buckets or buckets[-1][0] != inf:
        raise MetricsError("truncated", (full,), f"histogram {name} is incomplete")
    bounds, cumulative = zip(*buckets, strict=True)
    histogram = Histogram(bounds, cumulative, ends["_sum"], ends["_count"])
    _check_histogram(full, histogram)
    return histogram


def _check_histogram(name: str, h: Histogram) -> None:
    rising = all(a < b for a, b in pairwise(h.bounds)) and all(a <= b for a, b in pairwise(h.cumulative))
    agrees = h.cumulative[-1] == h.count and (h.count > 0 or h.sum == 0)
    if not (rising and agrees and all(c.is_integer() for c in h.cumulative)):
        raise MetricsError("bad_value", (name,), f"histogram {name} contradicts itself")
