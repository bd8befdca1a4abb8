"""Reads vLLM's statistics, whose classes are not a stable interface: whatever is missing is None or nothing.

No vLLM import: objects are read by attribute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsFloat, SupportsInt

from kvwattd.vllm_plugin.wire import MAX_FIRST_TOKENS, MAX_NAME, Finished, Started


def served_name(vllm_config: object) -> str:
    """The model's name as clients and the metrics page use it."""
    model = getattr(vllm_config, "model_config", None)
    name = getattr(model, "served_model_name", None)
    if isinstance(name, (list, tuple)):
        name = name[0] if name else None
    return str(name or getattr(model, "model", ""))[:MAX_NAME]


def api_servers(vllm_config: object) -> int:
    """How many API server processes share the engine; 1 where the version does not tell."""
    parallel = getattr(vllm_config, "parallel_config", None)
    return max(whole(getattr(parallel, "_api_process_count", 1)), 1)


def engine_rank(vllm_config: object) -> int:
    """Data-parallel rank; 0 where there is one engine."""
    parallel = getattr(vllm_config, "parallel_config", None)
    found = getattr(parallel, "data_parallel_index", getattr(parallel, "data_parallel_rank", 0))
    return max(whole(found), 0)


def whole(value: SupportsInt | None) -> int:
    """A count; nothing where it is missing."""
    return 0 if value is None else int(value)


def maybe_whole(value: SupportsInt | None) -> int | None:
    return None if value is None else int(value)


def seconds(value: SupportsFloat | None) -> float:
    return 0.0 if value is None else float(value)


def waiting(scheduler: object) -> int | None:
    """Requests that wait; recent versions count the deferred ones apart."""
    count = getattr(scheduler, "num_waiting_reqs", None)
    if count is None:
        return None
    return int(count) + whole(getattr(scheduler, "num_skipped_waiting_reqs", None))


def computed_prompt_tokens(iteration: object) -> int:
    """Prompt tokens computed, without those found in the prefix cache where the version tells them apart."""
    sources = getattr(iteration, "prompt_token_stats", None)
    computed = getattr(sources, "computed", None)
    return whole(getattr(iteration, "num_prompt_tokens", None) if computed is None else computed)


def whole_prompt_tokens(iteration: object) -> int:
    """Length of the prompts that were completed, cache hits included."""
    total = getattr(getattr(iteration, "prompt_token_stats", None), "total", None)
    return whole(getattr(iteration, "num_prompt_tokens", None) if total is None else total)


def started(iteration: object, decode_step: int) -> Started | None:
    """The requests whose first token came in this step; None: none, or the version does not tell when."""
    first = getattr(iteration, "time_to_first_tokens_iter", None)
    at_s = getattr(iteration, "iteration_timestamp", None)
    if not first or at_s is None:
        return None
    waits = [float(wait_s) for wait_s in first[:MAX_FIRST_TOKENS]]
    return Started(float(at_s), decode_step, whole_prompt_tokens(iteration), waits)


def chunk_tokens(scheduler: object) -> int | None:
    """Prompt tokens of this step; only with --enable-logging-iteration-details."""
    return maybe_whole(getattr(getattr(scheduler, "iteration_details", None), "num_ctx_tokens", None))


def finished(requests: Iterable[object], at_s: float | None = None) -> list[Finished]:
    """What is told of each request that finished at `at_s`: lengths and times, no text and no name."""
    return [
        Finished(
            reason=whole(getattr(item, "finish_reason", None)),
            prompt_tokens=whole(getattr(item, "num_prompt_tokens", None)),
            output_tokens=whole(getattr(item, "num_generation_tokens", None)),
            max_tokens=maybe_whole(getattr(item, "max_tokens_param", None)),
            cached_tokens=maybe_whole(getattr(item, "num_cached_tokens", None)),
            e2e_s=seconds(getattr(item, "e2e_latency", None)),
            queued_s=seconds(getattr(item, "queued_time", None)),
            prefill_s=seconds(getattr(item, "prefill_time", None)),
            decode_s=seconds(getattr(item, "decode_time", None)),
            arrival_s=None if at_s is None else at_s - seconds(getattr(item, "e2e_latency", None)),
        )
        for item in requests
    ]
