"""vLLM's `/metrics` page, made of prometheus_client objects in a registry of its own.

What is recorded when follows vLLM 0.32 (`vllm/v1/metrics/loggers.py`, `stats.py`): prompt tokens count when
their request's first token comes, prefix-cache queries at first admission, lengths and phase times at finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from kvwatt.state import EngineShape
from kvwatt_sim.engine import Counters
from kvwatt_sim.server.cache_config import cache_config_labels
from kvwatt_sim.server.families import FAMILIES, Family, Kind, Layout, length_buckets
from kvwatt_sim.server.http_metrics import HttpMetrics

ENGINE = "0"


@dataclass(frozen=True, slots=True)
class PageShape:
    """What of the page depends on the engine's configuration."""

    model_name: str
    engine: EngineShape
    max_model_len: int
    layout: Layout = Layout.V0_32


@dataclass(frozen=True, slots=True)
class Gauges:
    """The scheduler's state after a step."""

    running: int
    waiting: int
    kv_usage: float


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished or aborted request, as vLLM's FinishedRequestStats; times in seconds."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    max_tokens: int
    preemptions: int
    e2e_s: float
    queue_s: float
    prefill_s: float
    decode_s: float

    @property
    def time_per_output_token_s(self) -> float:
        """Mean over all tokens but the first; 0 for a single token, as vLLM reports it."""
        return self.decode_s / (self.generation_tokens - 1) if self.generation_tokens > 1 else 0.0


class MetricsPage:
    """All series of one engine. Methods are called from one thread."""

    def __init__(self, shape: PageShape) -> None:
        self.registry = CollectorRegistry()
        GCCollector(self.registry)
        PlatformCollector(self.registry)
        ProcessCollector(registry=self.registry)
        self._gauges: dict[tuple[str, str], Gauge] = {}
        self._counters: dict[tuple[str, str], Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        for family in FAMILIES:
            if family.since <= shape.layout:
                self._register(family, shape)
        info = cache_config_labels(shape.layout, shape.engine, shape.max_model_len) | {"engine": ENGINE}
        Gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            sorted(info),
            registry=self.registry,
        ).labels(**info).set(1)
        self.http = HttpMetrics(self.registry)
        self.sleep_state(asleep=False, level=0)

    def render(self) -> bytes:
        """The page in the Prometheus text format."""
        return generate_latest(self.registry)

    def scheduler(self, gauges: Gauges) -> None:
        """Set the gauges that vLLM sets after every engine step."""
        self._set("vllm:num_requests_running", gauges.running)
        self._set("vllm:num_requests_waiting", gauges.waiting)
        self._set("vllm:num_requests_waiting_by_reason", gauges.waiting, "capacity")
        self._set("vllm:kv_cache_usage_perc", gauges.kv_usage)

    def sleep_state(self, asleep: bool, level: int) -> None:
        """Level 1 offloads the weights, level 2 discards them."""
        self._set("vllm:engine_sleep_state", not asleep, "awake")
        self._set("vllm:engine_sleep_state", asleep and level == 1, "weights_offloaded")
        self._set("vllm:engine_sleep_state", asleep and level == 2, "discard_all")

    def answered(self, completions: int, longest_tokens: int) -> None:
        """All `completions` (the parameter n) of one prompt ended; the longest has `longest_tokens`."""
        self._observe("vllm:request_params_n", completions)
        self._observe("vllm:request_max_num_generation_tokens", longest_tokens)

    def progress(self, now: Counters, before: Counters) -> None:
        """One engine step took the engine's totals from `before` to `now`."""
        prompt = now.prompt_tokens - before.prompt_tokens
        cached = now.prompt_tokens_cached - before.prompt_tokens_cached
        generated = now.generation_tokens - before.generation_tokens
        hits = now.prefix_cache_hits - before.prefix_cache_hits
        self._inc("vllm:prompt_tokens", prompt)
        self._inc("vllm:prompt_tokens_by_source", prompt - cached, "local_compute")
        self._inc("vllm:prompt_tokens_by_source", cached, "local_cache_hit")
        self._inc("vllm:prompt_tokens_cached", cached)
        self._inc("vllm:prompt_tokens_cached_by_source", hits, "device")
        self._inc("vllm:prefix_cache_queries", now.prefix_cache_queries - before.prefix_cache_queries)
        self._inc("vllm:prefix_cache_hits", hits)
        self._inc("vllm:num_preemptions", now.preemptions - before.preemptions)
        self._inc("vllm:generation_tokens", generated)
        self._observe("vllm:iteration_tokens_total", prompt - cached + generated)

    def first_token(self, ttft_s: float) -> None:
        """A request produced its first token `ttft_s` after its arrival."""
        self._observe("vllm:time_to_first_token_seconds", ttft_s)

    def inter_token(self, seconds: Sequence[float]) -> None:
        """Gaps to the previous token of each request that decoded in this step."""
        observe = self._histograms["vllm:inter_token_latency_seconds"].observe
        for gap_s in seconds:
            observe(gap_s)

    def work(self, flops: float, read_bytes: float, write_bytes: float) -> None:
        """Estimated work of one step on each GPU."""
        self._inc("vllm:estimated_flops_per_gpu", flops)
        self._inc("vllm:estimated_read_bytes_per_gpu", read_bytes)
        self._inc("vllm:estimated_write_bytes_per_gpu", write_bytes)

    def finished(self, request: Finished) -> None:
        """A request ended; those that a pause aborted count too."""
        self._inc("vllm:request_success", 1, request.reason)
        self._observe("vllm:request_prompt_tokens", request.prompt_tokens)
        self._observe("vllm:request_generation_tokens", request.generation_tokens)
        self._observe("vllm:request_params_max_tokens", request.max_tokens)
        self._observe("vllm:request_time_per_output_token_seconds", request.time_per_output_token_s)
        self._observe("vllm:e2e_request_latency_seconds", request.e2e_s)
        self._observe("vllm:request_queue_time_seconds", request.queue_s)
        self._observe("vllm:request_inference_time_seconds", request.prefill_s + request.decode_s)
        self._observe("vllm:request_prefill_time_seconds", request.prefill_s)
        self._observe("vllm:request_decode_time_seconds", request.decode_s)
        self._observe("vllm:request_num_preemptions", request.preemptions)
        self._observe(
            "vllm:request_prefill_kv_computed_tokens", request.prompt_tokens - request.cached_tokens
        )

    def _register(self, family: Family, shape: PageShape) -> None:
        known = {"engine": ENGINE, "model_name": shape.model_name}
        if family.kind is Kind.HISTOGRAM:
            bounds = family.buckets or length_buckets(shape.max_model_len)
            histogram = Histogram(
                family.name, family.documentation, family.labels, registry=self.registry, buckets=bounds
            )
            self._histograms[family.name] = histogram.labels(**known)
            return
        metric: Gauge | Counter
        if family.kind is Kind.GAUGE:
            metric = Gauge(family.name, family.documentation, family.labels, registry=self.registry)
        else:
            metric = Counter(family.name, family.documentation, family.labels, registry=self.registry)
        for value in family.values or ("",):
            labels = {name: known.get(name, value) for name in family.labels}
            child = metric.labels(**labels)
            if isinstance(child, Gauge):
                self._gauges[family.name, value] = child
            else:
                self._counters[family.name, value] = child

    # Families that the chosen layout does not have are left out of the tables, hence the lookups below.
    def _set(self, name: str, value: float, label: str = "") -> None:
        if gauge := self._gauges.get((name, label)):
            gauge.set(value)

    def _inc(self, name: str, amount: float, label: str = "") -> None:
        if counter := self._counters.get((name, label)):
            counter.inc(amount)

    def _observe(self, name: str, amount: float) -> None:
        if histogram := self._histograms.get(name):
            histogram.observe(amount)
