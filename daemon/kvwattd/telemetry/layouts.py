"""The names vLLM's metrics had over time, one adapter per layout.

Metric names moved between releases, and readers that took a missing series for zero broke silently.
So every quantity that control depends on has exactly one name per layout, and a page that fits no layout
is refused with the names it lacks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Series names (without the `vllm:` prefix, as they stand on the page) of one range of vLLM versions."""

    name: str
    versions: str
    kv_usage: str
    itl: str
    tbt: str | None  # None: versions that only measured each token; the ITL histogram stands in
    cached: str | None  # None: no counter in tokens; zero is the safe reading (no prefill was spared)
    waiting_by_reason: str | None  # None: the version does not tell why requests wait

    @property
    def required(self) -> tuple[str, ...]:
        """Every series without which this layout is refused."""
        own = (self.kv_usage, self.itl, self.tbt, self.cached, self.waiting_by_reason)
        return COMMON + tuple(name for name in own if name is not None)


RUNNING = "num_requests_running"
WAITING = "num_requests_waiting"
CACHE_CONFIG = "cache_config_info"
PROMPT_TOKENS = "prompt_tokens_total"
GENERATION_TOKENS = "generation_tokens_total"
PREEMPTIONS = "num_preemptions_total"
FINISHED = "request_success_total"
ITERATIONS = "iteration_tokens_total"
PROMPT_LENGTHS = "request_prompt_tokens"
GENERATION_LENGTHS = "request_generation_tokens"
TTFT = "time_to_first_token_seconds"
E2E = "e2e_request_latency_seconds"
SLEEP_STATE = "engine_sleep_state"

COMMON = (
    RUNNING,
    WAITING,
    CACHE_CONFIG,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    PREEMPTIONS,
    FINISHED,
    ITERATIONS,
    PROMPT_LENGTHS,
    GENERATION_LENGTHS,
    TTFT,
    E2E,
)
OPTIONAL = (SLEEP_STATE,)
# vLLM's own estimates for its model FLOPs utilization: nothing is decided by them.
FLOPS = "estimated_flops_per_gpu_total"
TRAFFIC = ("estimated_read_bytes_per_gpu_total", "estimated_write_bytes_per_gpu_total")

# Newest first: the first layout whose every series is on the page is the page's layout. Releases between
# those whose sources were read (0.8.5, 0.10.2, 0.12.0, 0.16.0, 0.20.2, 0.25.0, 0.31.0-0.33.0) are told apart
# by what their page holds, never by their version number.
LAYOUTS = (
    Layout(
        name="v0.20",
        versions="0.20 and later",
        kv_usage="kv_cache_usage_perc",
        itl="inter_token_latency_seconds",
        tbt="request_time_per_output_token_seconds",
        cached="prompt_tokens_cached_total",
        waiting_by_reason="num_requests_waiting_by_reason",
    ),
    Layout(
        name="v0.16",
        versions="0.16 to 0.19",
        kv_usage="kv_cache_usage_perc",
        itl="inter_token_latency_seconds",
        tbt="request_time_per_output_token_seconds",
        cached="prompt_tokens_cached_total",
        waiting_by_reason=None,
    ),
    Layout(
        name="v0.12",
        versions="0.12 to 0.15",
        kv_usage="kv_cache_usage_perc",
        itl="inter_token_latency_seconds",
        tbt="request_time_per_output_token_seconds",
        cached="prefix_cache_hits_total",
        waiting_by_reason=None,
    ),
    Layout(
        name="v0.10",
        versions="0.10 and 0.11",
        kv_usage="kv_cache_usage_perc",
        itl="inter_token_latency_seconds",
        tbt=None,
        cached="prefix_cache_hits_total",
        waiting_by_reason=None,
    ),
    Layout(
        name="v0.8",
        versions="0.8 and 0.9",
        kv_usage="gpu_cache_usage_perc",
        itl="time_per_output_token_seconds",
        tbt=None,
        cached=None,  # gpu_prefix_cache_hits counted blocks, not tokens
        waiting_by_reason=None,
    ),
)

HISTOGRAMS = frozenset(
    {ITERATIONS, PROMPT_LENGTHS, GENERATION_LENGTHS, TTFT, E2E}
    | {layout.itl for layout in LAYOUTS}
    | {layout.tbt for layout in LAYOUTS if layout.tbt is not None}
)
SCALARS = (
    frozenset({name for layout in LAYOUTS for name in layout.required} | {*OPTIONAL, FLOPS, *TRAFFIC})
    - HISTOGRAMS
)


def matching(present: frozenset[str]) -> Layout | None:
    """The newest layout whose required series are all `present`, or None."""
    return next((layout for layout in LAYOUTS if present.issuperset(layout.required)), None)


def closest(present: frozenset[str]) -> tuple[Layout, tuple[str, ...]]:
    """The layout that lacks the fewest series (the newest of equals), and what it lacks."""
    lacks = [(layout, tuple(n for n in layout.required if n not in present)) for layout in LAYOUTS]
    return min(lacks, key=lambda pair: len(pair[1]))
