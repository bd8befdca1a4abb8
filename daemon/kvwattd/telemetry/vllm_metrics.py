"""vLLM's Prometheus page to a validated EngineSnapshot, or a refusal that says why.

Every number is checked before it is used: counts are whole, usage lies in 0..1, histograms are complete,
cumulative and agree with their count. Nothing missing is ever read as zero.
"""

from __future__ import annotations

from itertools import pairwise

from kvwatt.state import EngineSnapshot, Histogram
from kvwattd.telemetry import layouts
from kvwattd.telemetry.exposition import MetricsError, samples
from kvwattd.telemetry.figures import MAX_REQUESTS, Figures, Samples, grouped
from kvwattd.telemetry.layouts import HISTOGRAMS, Layout
from kvwattd.telemetry.report import LayoutReport

__all__ = ["LayoutReport", "MetricsError", "counters_reset", "parse", "self_test"]

_Engine = tuple[str, str]  # engine label, model_name label


def parse(
    text: bytes, observed_s: float, engine: str | None = None, model_name: str | None = None
) -> EngineSnapshot:
    """The snapshot of one engine; `engine` and `model_name` select among several on one page.

    Raises MetricsError.
    """
    page = list(samples(text))
    chosen = _choose_engine(page, engine, model_name)
    mine = _group(page, chosen)
    layout = layouts.matching(mine.names)
    if layout is None:
        raise _missing(mine.names)
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


def _engines(page: Samples) -> tuple[_Engine, ...]:
    found = {(s.engine or "0", s.model_name or "") for s, _ in page if s.name == layouts.RUNNING}
    return tuple(sorted(found))


def _choose_engine(page: Samples, engine: str | None, model_name: str | None) -> _Engine:
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


def _group(page: Samples, chosen: _Engine) -> Figures:
    """The chosen engine's samples; a series without a label belongs to every engine."""
    mine = (
        sample
        for sample in page
        if sample[0].engine in (None, chosen[0]) and sample[0].model_name in (None, chosen[1])
    )
    return Figures("vllm:", grouped(mine))


def _missing(present: frozenset[str]) -> MetricsError:
    nearest, missing = layouts.closest(present)
    names = tuple("vllm:" + name for name in missing)
    if not present:
        return MetricsError("not_vllm", names, "the page has no vLLM metrics")
    return MetricsError(
        "missing_series", names, f"closest layout is vLLM {nearest.versions}; missing {', '.join(names)}"
    )


def _snapshot(mine: Figures, layout: Layout, chosen: _Engine, observed_s: float) -> EngineSnapshot:
    histograms = {name: mine.histogram(name) for name in mine.names if name in HISTOGRAMS}
    block_size, num_blocks = _cache_config(mine.samples(layouts.CACHE_CONFIG))
    return EngineSnapshot(
        observed_s=observed_s,
        model_name=chosen[1],
        engine=chosen[0],
        running=mine.requests(layouts.RUNNING),
        waiting=mine.requests(layouts.WAITING),
        waiting_for_capacity=_waiting_for_capacity(mine, layout),
        kv_usage=mine.ratio(layout.kv_usage),
        block_size=block_size,
        num_blocks=num_blocks,
        asleep=_asleep(mine),
        prompt_tokens_total=mine.single(layouts.PROMPT_TOKENS),
        prompt_tokens_cached_total=mine.single(layout.cached) if layout.cached else 0.0,
        generation_tokens_total=mine.single(layouts.GENERATION_TOKENS),
        preemptions_total=mine.single(layouts.PREEMPTIONS),
        requests_finished_total=sum(mine.by_label(layouts.FINISHED, "finished_reason").values()),
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


def _estimate(names: tuple[str, ...], mine: Figures) -> float | None:
    """The sum of estimates; None where one is missing or is no number: no reason to refuse a page."""
    if not all(name in mine for name in names):
        return None
    try:
        return sum(mine.single(name) for name in names)
    except MetricsError:
        return None


def _waiting_for_capacity(mine: Figures, layout: Layout) -> int:
    if layout.waiting_by_reason is None:
        return 0
    reasons = mine.by_label(layout.waiting_by_reason, "reason")
    name = f'vllm:{layout.waiting_by_reason}{{reason="capacity"}}'
    if "capacity" not in reasons:
        raise MetricsError("missing_series", (name,), f"missing {name}")
    return int(mine.whole(layout.waiting_by_reason, min(reasons["capacity"], MAX_REQUESTS)))


def _asleep(mine: Figures) -> bool:
    """Versions without the gauge are taken as awake: a sleeping engine runs nothing that could suffer."""
    if layouts.SLEEP_STATE not in mine:
        return False
    return mine.by_label(layouts.SLEEP_STATE, "sleep_state").get("awake", 1.0) == 0.0


def _cache_config(found: Samples) -> tuple[int, int]:
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
