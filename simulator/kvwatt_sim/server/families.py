"""The metric families of vLLM's `/metrics`: names, HELP, types, label names, label values and buckets.

Copied in meaning from pages that real vLLM 0.32.0, 0.31.0 and 0.27.1 served; a test compares every
family with those pages. Order is the order on the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus types that vLLM uses."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Layout(StrEnum):
    """vLLM versions whose page can be served."""

    V0_27 = "0.27"
    V0_31 = "0.31"
    V0_32 = "0.32"


ENGINE_LABELS = ("engine", "model_name")

REQUEST_LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_LATENCY_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
ITERATION_TOKENS = tuple(float(n) for n in (1, *(2**k for k in range(3, 15))))
PARAM_N = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)


def length_buckets(max_model_len: int) -> tuple[float, ...]:
    """1-2-5 series up to `max_model_len`: vLLM's buckets for everything counted in tokens per request."""
    bounds: list[float] = []
    scale = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * scale > max_model_len:
                return tuple(bounds)
            bounds.append(float(mantissa * scale))
        scale *= 10


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. `name` is without `_total`; `buckets` empty on a histogram means token lengths."""

    name: str
    kind: Kind
    documentation: str
    labels: tuple[str, ...] = ENGINE_LABELS
    values: tuple[str, ...] = ()  # values of the last label, when it is neither engine nor model_name
    buckets: tuple[float, ...] = ()
    since: Layout = Layout.V0_27


def _gauge(name: str, documentation: str, label: str = "", values: tuple[str, ...] = ()) -> Family:
    labels = (*ENGINE_LABELS, label) if label else ENGINE_LABELS
    return Family(name, Kind.GAUGE, documentation, labels, values)


def _counter(
    name: str,
    documentation: str,
    label: str = "",
    values: tuple[str, ...] = (),
    since: Layout = Layout.V0_27,
) -> Family:
    labels = (*ENGINE_LABELS, label) if label else ENGINE_LABELS
    return Family(name, Kind.COUNTER, documentation, labels, values, since=since)


def _histogram(
    name: str, documentation: str, buckets: tuple[float, ...] = (), since: Layout = Layout.V0_27
) -> Family:
    return Family(name, Kind.HISTOGRAM, documentation, buckets=buckets, since=since)


_MFU = "per GPU (for Model Flops Utilization calculations)."
_EXTERNAL = "from KV connector cross-instance cache sharing, in terms of number of"

FAMILIES: tuple[Family, ...] = (
    _counter("vllm:estimated_flops_per_gpu", f"Estimated number of floating point operations {_MFU}"),
    _counter("vllm:estimated_read_bytes_per_gpu", f"Estimated number of bytes read from memory {_MFU}"),
    _counter("vllm:estimated_write_bytes_per_gpu", f"Estimated number of bytes written to memory {_MFU}"),
    _gauge("vllm:num_requests_running", "Number of requests in model execution batches."),
    _gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed."),
    _gauge(
        "vllm:num_requests_waiting_by_reason",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
        "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). "
        "Sum of all reasons equals vllm:num_requests_waiting.",
        "reason",
        ("capacity", "deferred"),
    ),
    _gauge(
        "vllm:engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "
        "weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
        "sleep_state",
        ("awake", "weights_offloaded", "discard_all"),
    ),
    _gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage."),
    _counter("vllm:prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."),
    _counter("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens."),
    _counter(
        "vllm:external_prefix_cache_queries", f"External prefix cache queries {_EXTERNAL} queried tokens."
    ),
    _counter("vllm:external_prefix_cache_hits", f"External prefix cache hits {_EXTERNAL} cached tokens."),
    _counter("vllm:mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items."),
    _counter("vllm:mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items."),
    _counter("vllm:num_preemptions", "Cumulative number of preemption from the engine."),
    _counter("vllm:prompt_tokens", "Number of prefill tokens processed."),
    _counter(
        "vllm:prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        "source",
        ("local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    _counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external)."),
    _counter(
        "vllm:prompt_tokens_cached_by_source",
        "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded "
        "to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at "
        "admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
        "source",
        ("device", "host", "p2p", "disk", "external_unspecified"),
        Layout.V0_32,
    ),
    _counter("vllm:generation_tokens", "Number of generation tokens processed."),
    _counter(
        "vllm:request_success",
        "Count of successfully processed requests.",
        "finished_reason",
        ("stop", "length", "abort", "error", "repetition"),
    ),
    Family(
        "vllm:admission_rejections",
        Kind.COUNTER,
        "Number of admission attempts rejected by a queue limit, by reason.",
        ("model_name", "reason"),
        ("max_num_queued_reqs", "max_num_queued_tokens"),
        since=Layout.V0_32,
    ),
    _histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed."),
    _histogram("vllm:request_generation_tokens", "Number of generation tokens processed."),
    _histogram(
        "vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", ITERATION_TOKENS
    ),
    _histogram(
        "vllm:request_max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.",
    ),
    _histogram("vllm:request_params_n", "Histogram of the n request parameter.", PARAM_N),
    _histogram("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter."),
    _histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", TTFT_S),
    _histogram(
        "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", TOKEN_LATENCY_S
    ),
    _histogram(
        "vllm:request_time_per_output_token_seconds",
        "Histogram of time_per_output_token_seconds per request.",
        TOKEN_LATENCY_S,
    ),
    _histogram(
        "vllm:e2e_request_latency_seconds",
        "Histogram of e2e request latency in seconds.",
        REQUEST_LATENCY_S,
    ),
    *(
        _histogram(
            f"vllm:request_{phase}_time_seconds",
            f"Histogram of time spent in {state} phase for request.",
            REQUEST_LATENCY_S,
        )
        for phase, state in (
            ("queue", "WAITING"),
            ("inference", "RUNNING"),
            ("prefill", "PREFILL"),
            ("decode", "DECODE"),
        )
    ),
    _histogram(
        "vllm:request_num_preemptions",
        "Histogram of the number of times a request was preempted.",
        PREEMPTIONS,
        Layout.V0_31,
    ),
    _histogram(
        "vllm:request_prefill_kv_computed_tokens",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
    ),
)
