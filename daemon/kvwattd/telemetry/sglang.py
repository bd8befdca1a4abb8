"""SGLang's Prometheus page to the same EngineSnapshot. Names from its documentation and sources.

Sources (docs/compatibility.md): `docs/references/production_metrics.md` and
`python/sglang/srt/metrics/collector.py` of sgl-project/sglang. Never tried against a running SGLang.

What differs from vLLM, and what is made of it:
- Steps are counted by `cuda_graph_passes_total` (one per forward pass that decodes), tokens as they are
  computed by `realtime_tokens_total`; the totals named like vLLM's grow at a request's end alone.
- Gauges are refreshed at every prefill batch and every `--decode-log-interval` decode steps (40 unless told).
- There is no time between tokens per request: the gaps between single tokens stand in.
- The KV cache is counted in tokens. Why requests wait is not told; `waiting_for_capacity` stays 0.
- A labelled counter is on the page from its first event on: a server that has served nothing is refused, and
  only retractions (SGLang's word for preemptions) may be absent, which says that there were none.
- Ranks of one engine repeat the scheduler's series: the first rank counts. Data-parallel engines share the
  latencies, and prefill and decode servers serve half a request each: both are refused.
"""

from __future__ import annotations

from math import inf

from kvwatt.state import EngineSnapshot, Histogram
from kvwattd.telemetry.exposition import MetricsError, Series, Vocabulary, samples
from kvwattd.telemetry.figures import Figures, Samples, grouped
from kvwattd.telemetry.report import LayoutReport

PREFIX = "sglang:"
LAYOUT = "sglang"
VERSIONS = "SGLang with cuda_graph_passes_total and realtime_tokens_total"

RUNNING = "num_running_reqs"
WAITING = "num_queue_reqs"
USAGE = "token_usage"
CAPACITY = "max_total_num_tokens"
STEPS = "cuda_graph_passes_total"
TOKENS = "realtime_tokens_total"
FINISHED = "num_requests_total"
RETRACTED = "num_retracted_requests_total"
PROMPT_LENGTHS = "prompt_tokens_histogram"
GENERATION_LENGTHS = "generation_tokens_histogram"
TTFT = "time_to_first_token_seconds"
ITL = "inter_token_latency_seconds"
E2E = "e2e_request_latency_seconds"

_HISTOGRAMS = (PROMPT_LENGTHS, GENERATION_LENGTHS, TTFT, ITL, E2E)
_SCALARS = (RUNNING, WAITING, USAGE, CAPACITY, STEPS, TOKENS, FINISHED)
REQUIRED = (*_SCALARS, *_HISTOGRAMS)
WORDS = Vocabulary(PREFIX, (*_SCALARS, RETRACTED), _HISTOGRAMS)
NEEDS_FLAG = (PROMPT_LENGTHS, GENERATION_LENGTHS)
CAVEATS = (
    "its gauges are as old as --decode-log-interval decode steps (40 unless told): start it with 1",
    "time between tokens is told per token, not per request",
    "why requests wait is not told",
    "SGLang was never tried with kvwatt: watch it in shadow mode first",
)

_RANKS = ("dp_rank", "pp_rank", "tp_rank", "moe_ep_rank")
_WHOLE_ENGINE = frozenset({None, "unified"})


def parse(
    text: bytes, observed_s: float, engine: str | None = None, model_name: str | None = None
) -> EngineSnapshot:
    """The snapshot of the engine of this page. Raises MetricsError."""
    page = list(samples(text, WORDS))
    missing = _missing(page)
    if missing:
        hint = " (start it with --collect-tokens-histogram)" if set(missing) & set(NEEDS_FLAG) else ""
        names = tuple(PREFIX + name for name in missing)
        raise MetricsError("missing_series", names, f"SGLang: missing {', '.join(names)}{hint}")
    chosen = _only_engine(page, engine, model_name)
    return _snapshot(Figures(PREFIX, grouped(_of_first_rank(page))), chosen, observed_s)


def self_test(text: bytes) -> LayoutReport:
    """What the page offers. Raises MetricsError for a page that cannot be read."""
    page = list(samples(text, WORDS))
    missing = _missing(page)
    return LayoutReport(
        layout=None if missing else LAYOUT,
        versions=VERSIONS,
        missing=tuple(PREFIX + name for name in missing),
        absent_optional=(),
        engines=_engines(page),
        kind="SGLang",
        caveats=CAVEATS,
    )


def _missing(page: Samples) -> tuple[str, ...]:
    present = {series.name for series, _ in page}
    return tuple(name for name in REQUIRED if name not in present)


def _engines(page: Samples) -> tuple[tuple[str, str], ...]:
    found = {(s.labels.get("dp_rank", "0"), s.model_name or "") for s, _ in page if s.name == RUNNING}
    return tuple(sorted(found))


def _only_engine(page: Samples, engine: str | None, model_name: str | None) -> tuple[str, str]:
    found = _engines(page)
    told = "; ".join(f"engine={e} model_name={m}" for e, m in found)
    if len(found) > 1:
        detail = f"data-parallel engines share SGLang's latencies, so none of them can be told apart: {told}"
        raise MetricsError("ambiguous_engine", (told,), detail)
    roles = {series.labels.get("engine_type") for series, _ in page}
    if not roles <= _WHOLE_ENGINE:
        role = sorted(str(role) for role in roles - _WHOLE_ENGINE)[0]
        raise MetricsError("unknown_engine", (role,), f"a {role[:40]!r} server serves only part of a request")
    if engine not in (None, found[0][0]) or model_name not in (None, found[0][1]):
        asked = f"engine={engine or 'any'} model_name={model_name or 'any'}"
        raise MetricsError("unknown_engine", (told,), f"asked for {asked}, the page has {told}")
    return found[0]


def _of_first_rank(page: Samples) -> Samples:
    """Of the scheduler's series that of its first rank; series without ranks are of the whole engine."""
    first: dict[str, tuple[int, ...]] = {}
    for series, _ in page:
        first[series.name] = min(first.get(series.name, _rank(series)), _rank(series))
    return [sample for sample in page if _rank(sample[0]) == first[sample[0].name]]


def _rank(series: Series) -> tuple[int, ...]:
    texts = [series.labels.get(label, "0") for label in _RANKS]
    if not all(text.isascii() and text.isdigit() and len(text) < 6 for text in texts):
        name = PREFIX + series.name
        raise MetricsError("bad_value", (name,), f"{name} has the ranks {texts}, need whole numbers")
    return tuple(int(text) for text in texts)


def _snapshot(mine: Figures, chosen: tuple[str, str], observed_s: float) -> EngineSnapshot:
    computed, cached, decoded = _tokens(mine)
    itl_s = mine.histogram_total(ITL)
    return EngineSnapshot(
        observed_s=observed_s,
        model_name=chosen[1],
        engine=chosen[0],
        running=mine.requests(RUNNING),
        waiting=mine.requests(WAITING),
        waiting_for_capacity=0,
        kv_usage=mine.ratio(USAGE),
        block_size=1,
        num_blocks=_capacity_tokens(mine) + 1,  # the snapshot's readers keep one block back
        asleep=False,
        prompt_tokens_total=computed + cached,
        prompt_tokens_cached_total=cached,
        generation_tokens_total=decoded,
        preemptions_total=mine.total(RETRACTED) if RETRACTED in mine else 0.0,
        requests_finished_total=mine.total(FINISHED),
        iterations=_steps(mine, decoded),
        prompt_lengths=mine.histogram_total(PROMPT_LENGTHS),
        generation_lengths=mine.histogram_total(GENERATION_LENGTHS),
        ttft_s=mine.histogram_total(TTFT),
        tbt_s=itl_s,
        itl_s=itl_s,
        e2e_s=mine.histogram_total(E2E),
    )


def _tokens(mine: Figures) -> tuple[float, float, float]:
    """Prompt tokens computed, prompt tokens spared, tokens decoded."""
    modes = mine.by_label(TOKENS, "mode")
    for mode in ("prefill_compute", "decode"):
        if mode not in modes:
            name = f'{PREFIX}{TOKENS}{{mode="{mode}"}}'
            raise MetricsError("missing_series", (name,), f"missing {name}")
    return modes["prefill_compute"], modes.get("prefill_cache", 0.0), modes["decode"]


def _steps(mine: Figures, decoded: float) -> Histogram:
    steps = mine.whole(STEPS, mine.total(STEPS))
    return Histogram((inf,), (steps,), decoded if steps else 0.0, steps)


def _capacity_tokens(mine: Figures) -> int:
    tokens = mine.whole(CAPACITY, mine.single(CAPACITY))
    if tokens < 1:
        raise MetricsError("bad_value", (PREFIX + CAPACITY,), f"{CAPACITY} is {tokens:g}, need more than 0")
    return int(tokens)
