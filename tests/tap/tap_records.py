"""vLLM's statistics as the tap reads them, and records as it sends them; for tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvwattd.vllm_plugin.wire import VERSION, Finished, Record

MODEL = "tiny"
CONFIG = SimpleNamespace(
    model_config=SimpleNamespace(served_model_name=MODEL, model="/models/tiny"),
    parallel_config=SimpleNamespace(_api_process_count=1),
)


def scheduler(**changed: Any) -> SimpleNamespace:
    """vllm.v1.metrics.stats.SchedulerStats, as far as it is read."""
    known = {
        "num_running_reqs": 3,
        "num_waiting_reqs": 1,
        "num_skipped_waiting_reqs": 1,
        "kv_cache_usage": 0.25,
        "iteration_details": None,
    }
    return SimpleNamespace(**(known | changed))


def iteration(**changed: Any) -> SimpleNamespace:
    """vllm.v1.metrics.stats.IterationStats, as far as it is read."""
    known = {
        "num_generation_tokens": 3,
        "prompt_token_stats": SimpleNamespace(computed=100, total=120),
        "num_preempted_reqs": 0,
        "finished_requests": [],
        "time_to_first_tokens_iter": [0.4],
        "inter_token_latencies_iter": [0.02, 0.07],
    }
    return SimpleNamespace(**(known | changed))


def finished_request(**changed: Any) -> SimpleNamespace:
    """vllm.v1.metrics.stats.FinishedRequestStats."""
    known = {
        "finish_reason": 1,
        "request_id": "chatcmpl-secret",
        "num_prompt_tokens": 120,
        "num_generation_tokens": 40,
        "max_tokens_param": 64,
        "num_cached_tokens": 20,
        "e2e_latency": 2.0,
        "queued_time": 0.1,
        "prefill_time": 0.4,
        "decode_time": 1.5,
    }
    return SimpleNamespace(**(known | changed))


def record(**changed: Any) -> Record:
    """A record of one step; totals that are not given follow from the step alone."""
    known: dict[str, Any] = {
        "version": VERSION,
        "sequence": 1,
        "sent_s": 0.0,
        "sender": 77,
        "servers": 1,
        "instance": "",
        "model": MODEL,
        "engine": 0,
        "running": 3,
        "waiting": 0,
        "kv_usage": 0.25,
        "step_s": 0.02,
        "decodes": 3,
        "itl_sum_s": 0.06,
        "generation_tokens": 3,
        "prompt_tokens": 0,
        "chunk_tokens": None,
        "preempted": 0,
        "generation_tokens_total": 3,
        "finished_total": 0,
        "dropped_total": 0,
    }
    return Record(**(known | changed))


def ended(prompt_tokens: int, output_tokens: int) -> Finished:
    """A request that stopped by itself."""
    return Finished(0, prompt_tokens, output_tokens)
