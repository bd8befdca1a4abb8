"""Frozen inputs and outputs of the decision. Times are monotonic seconds passed in by the caller.

Words are the field's own (see docs/design.md): TTFT = time to first token, TBT = mean time between
the tokens of one request, E2E = arrival to last token.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf


class Metric(StrEnum):
    """The latencies a service promises."""

    TTFT = "ttft"
    TBT = "tbt"
    E2E = "e2e"


@dataclass(frozen=True, slots=True)
class SloTarget:
    """One promise: at least `quantile` of requests stay within `limit_s`."""

    limit_s: float
    quantile: float = 0.99

    def __post_init__(self) -> None:
        if not 0.0 < self.limit_s < inf:
            raise ValueError(f"limit_s must be positive and finite, got {self.limit_s}")
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"quantile must lie strictly between 0 and 1, got {self.quantile}")


@dataclass(frozen=True, slots=True)
class Slo:
    """The promises of one instance. A metric without a target is not promised.

    `itl`: of single gaps between tokens, over all requests; the others are per request.
    """

    ttft: SloTarget | None = None
    tbt: SloTarget | None = None
    e2e: SloTarget | None = None
    itl: SloTarget | None = None


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """The clocks that may be asked of an instance's GPUs.

    `supported_mhz` ascending: exactly what the driver lists, inside the operator's bounds.
    `default_mhz`: the clock the driver runs under load when nothing is locked.
    """

    supported_mhz: tuple[int, ...]
    default_mhz: int
    switch_latency_s: float = 0.2

    def __post_init__(self) -> None:
        clocks = self.supported_mhz
        if not clocks or list(clocks) != sorted(set(clocks)) or clocks[0] <= 0:
            raise ValueError(f"supported_mhz must be ascending, distinct and positive, got {clocks}")


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What does not change while an engine runs."""

    block_size: int  # tokens per KV block
    num_blocks: int  # KV blocks of the engine
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    tp: int = 1

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV cache; vLLM keeps one block back (usage = 1 - free / (num_blocks - 1))."""
        return max(self.num_blocks - 1, 1) * self.block_size


@dataclass(frozen=True, slots=True)
class RequestState:
    """One request as the scheduler sees it. `weight` < 1: a cohort estimated from aggregates.

    `hint_tokens`: the caller's own guess of the output length, if it gave one. `first_token_s`: when its
    first token came, None before; from it on the time between its tokens counts.
    """

    arrival_s: float
    prompt_tokens: int
    computed_prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    weight: float = 1.0
    hint_tokens: float | None = None
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine at `observed_s`. `requests` is empty when only aggregates are known."""

    observed_s: float
    running: int
    waiting: int
    kv_used_tokens: float
    requests: tuple[RequestState, ...] = ()
    waiting_for_capacity: int = 0


@dataclass(frozen=True, slots=True)
class Histogram:
    """A Prometheus histogram: upper bounds (last is inf), cumulative counts per bound, sum, count."""

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    sum: float
    count: float


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """What one scrape of a vLLM engine's metrics says, validated; counters since the engine's start."""

    observed_s: float  # monotonic time at which the request was sent
    model_name: str
    engine: str
    running: int
    waiting: int
    waiting_for_capacity: int  # 0 where the version does not tell
    kv_usage: float  # 0..1
    block_size: int
    num_blocks: int
    asleep: bool
    prompt_tokens_total: float
    prompt_tokens_cached_total: float
    generation_tokens_total: float
    preemptions_total: float
    requests_finished_total: float
    iterations: Histogram  # vllm:iteration_tokens_total: tokens per engine step
    prompt_lengths: Histogram  # request_prompt_tokens, at finish
    generation_lengths: Histogram  # request_generation_tokens, at finish
    ttft_s: Histogram
    tbt_s: Histogram  # request_time_per_output_token_seconds where present, per finished request
    itl_s: Histogram  # inter_token_latency_seconds, per token
    e2e_s: Histogram
    flops_total: float | None = None  # vLLM's estimates, per GPU; None where the version has none
    bytes_total: float | None = None


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of one GPU. `energy_j` is our own monotone sum of counter deltas."""

    observed_s: float
    uuid: str
    clock_mhz: int
    power_w: float
    energy_j: float
    temperature_c: float
    utilization: float  # 0..1
    event_reasons: int  # NVML bit mask


class Binding(StrEnum):
    """What kept the clock from being lower."""

    TTFT = "ttft"
    TBT = "tbt"
    E2E = "e2e"
    ITL = "itl"
    KV = "kv"
    ENERGY = "energy"  # lower is feasible but costs more energy
    LOWEST = "lowest"  # nothing: already the lowest permitted clock
    DWELL = "dwell"  # a lower clock was chosen too recently
    NONE = "none"  # no feasible clock: driver default


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the decision expects at one clock (upper bounds where named so)."""

    clock_mhz: int
    tbt_s: float
    ttft_s: float
    e2e_s: float
    power_w: float
    feasible: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """A clock for all GPUs of one instance; `clock_mhz` None means driver default."""

    decided_s: float
    clock_mhz: int | None
    binding: Binding
    reason: str
    chosen: Forecast | None = None
    next_lower: Forecast | None = None
    at_default: Forecast | None = None
    projected_batch: float = 0.0
    projected_kv_tokens: float = 0.0
