"""What SGLang's metrics page would say of an engine: a simulated one's numbers, SGLang's names and habits.

The engine stays the simulated vLLM-like one; only what is told of it differs, and when: gauges and tokens
are refreshed when a prompt was computed and every `decode_log_interval` decode steps (40 unless told), with
the batch of that step; once nobody is left, half a minute after that.
Names and habits: docs/compatibility.md.
"""

from __future__ import annotations

from kvwatt.state import EngineSnapshot, Histogram

RANK = 'engine_type="unified",model_name="{model}",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
IDLE_S = 30.0
_HISTOGRAMS = {
    "prompt_tokens_histogram": "prompt_lengths",
    "generation_tokens_histogram": "generation_lengths",
    "time_to_first_token_seconds": "ttft_s",
    "inter_token_latency_seconds": "itl_s",
    "e2e_request_latency_seconds": "e2e_s",
}


class SglangPage:
    """Call `look` often, at least every few steps; `render` gives the page of now."""

    def __init__(self, decode_log_interval: int = 40) -> None:
        if decode_log_interval < 1:
            raise ValueError(f"decode_log_interval = {decode_log_interval}: at least 1 is needed")
        self._interval = decode_log_interval
        self._logged: EngineSnapshot | None = None
        self._logged_s = 0.0

    def look(self, now: EngineSnapshot) -> None:
        """Refresh what SGLang would have refreshed since the last look."""
        logged = self._logged
        if logged is None:
            self._logged = now
        elif now.running + now.waiting == 0:
            if now.observed_s - self._logged_s < IDLE_S:
                return
            self._logged = now
        elif self._passed(logged, now) or _prefilled(logged, now):
            self._logged = now
        else:
            return
        self._logged_s = now.observed_s

    def render(self, now: EngineSnapshot) -> bytes:
        """The page; `look` at the same snapshot first."""
        logged = self._logged or now
        rank = RANK.format(model=now.model_name)
        lines = [f"sglang:{name}{{{rank}}} {value!r}" for name, value in _gauges(logged).items()]
        computed = logged.prompt_tokens_total - logged.prompt_tokens_cached_total
        cached = logged.prompt_tokens_cached_total
        tokens = {"prefill_compute": computed, "prefill_cache": cached}
        for mode, count in {**tokens, "decode": logged.generation_tokens_total}.items():
            lines.append(f'sglang:realtime_tokens_total{{{rank},mode="{mode}"}} {count!r}')
        steps = now.iterations.count
        lines.append(f'sglang:cuda_graph_passes_total{{{rank},mode="decode_cuda_graph"}} {steps!r}')
        model = f'model_name="{now.model_name}"'
        lines.append(f"sglang:num_requests_total{{{model}}} {now.requests_finished_total!r}")
        for name, field in _HISTOGRAMS.items():
            lines += _histogram(name, model, getattr(now, field))
        return ("\n".join(lines) + "\n").encode()

    def _passed(self, logged: EngineSnapshot, now: EngineSnapshot) -> bool:
        """Whether a multiple of the interval lies between the two."""
        return now.iterations.count // self._interval > logged.iterations.count // self._interval


def _prefilled(logged: EngineSnapshot, now: EngineSnapshot) -> bool:
    return now.prompt_tokens_total > logged.prompt_tokens_total


def _gauges(logged: EngineSnapshot) -> dict[str, float]:
    capacity = max(logged.num_blocks - 1, 1) * logged.block_size
    return {
        "num_running_reqs": float(logged.running),
        "num_queue_reqs": float(logged.waiting),
        "token_usage": logged.kv_usage,
        "max_total_num_tokens": float(capacity),
    }


def _histogram(name: str, labels: str, h: Histogram) -> list[str]:
    buckets = zip(h.bounds, h.cumulative, strict=True)
    lines = [f'sglang:{name}_bucket{{{labels},le="{_bound(le)}"}} {n!r}' for le, n in buckets]
    lines.append(f"sglang:{name}_sum{{{labels}}} {h.sum!r}")
    lines.append(f"sglang:{name}_count{{{labels}}} {h.count!r}")
    return lines


def _bound(le: float) -> str:
    return "+Inf" if le == float("inf") else repr(le)
