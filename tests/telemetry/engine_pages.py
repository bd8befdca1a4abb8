"""Pages of other engines, made of the names and types that their documentation and sources give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

RANK = 'engine_type="unified",model_name="llama",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
MODEL = 'model_name="llama"'
GAUGES = {
    "num_running_reqs": 12.0,
    "num_used_tokens": 30_000.0,
    "token_usage": 0.3,
    "gen_throughput": 310.5,
    "num_queue_reqs": 3.0,
    "cache_hit_rate": 0.01,
    "max_total_num_tokens": 100_000.0,
    "utilization": 0.0,
}
SECONDS = {
    "time_to_first_token_seconds": (("0.1", 3.0), ("0.4", 30.0), ("+Inf", 40.0)),
    "inter_token_latency_seconds": (("0.02", 100.0), ("0.04", 4000.0), ("+Inf", 4100.0)),
    "e2e_request_latency_seconds": (("1.0", 2.0), ("10.0", 37.0), ("+Inf", 38.0)),
}
TOKENS = {
    "prompt_tokens_histogram": (("100.0", 5.0), ("1000.0", 30.0), ("+Inf", 38.0)),
    "generation_tokens_histogram": (("100.0", 20.0), ("300.0", 35.0), ("+Inf", 38.0)),
}


def sglang_page(gauges: Mapping[str, float] = GAUGES, *, ranks: int = 1, histograms: bool = True) -> bytes:
    """As SGLang with --enable-metrics serves it; `histograms`: with --collect-tokens-histogram."""
    lines = ["# HELP sglang:num_running_reqs The number of running requests."]
    for rank in range(ranks):
        labels = RANK.replace('tp_rank="0"', f'tp_rank="{rank}"')
        lines += [f"sglang:{name}{{{labels}}} {value}" for name, value in gauges.items()]
        for mode, steps in (("decode_cuda_graph", 500.0), ("decode_none", 20.0)):
            lines.append(f'sglang:cuda_graph_passes_total{{{labels},mode="{mode}"}} {steps}')
        for mode, tokens in (("prefill_compute", 20_000.0), ("prefill_cache", 400.0), ("decode", 5100.0)):
            lines.append(f'sglang:realtime_tokens_total{{{labels},mode="{mode}"}} {tokens}')
    counters = {
        "prompt_tokens_total": 19_000.0,
        "generation_tokens_total": 4700.0,
        "num_requests_total": 38.0,
    }
    lines += [f"sglang:{name}{{{MODEL}}} {value}" for name, value in counters.items()]
    for name, buckets in {**SECONDS, **(TOKENS if histograms else {})}.items():
        lines += histogram(f"sglang:{name}", MODEL, buckets)
    return ("\n".join(lines) + "\n").encode()


def tgi_page() -> bytes:
    """As TGI serves it after its first requests: no labels but the method, counters without `_total`."""
    lines = ["# TYPE tgi_queue_size gauge", "tgi_queue_size 2", "tgi_batch_current_size 7"]
    lines += ["tgi_batch_current_max_tokens 9000", "tgi_request_count 120", "tgi_request_success 117"]
    lines += [f'tgi_batch_inference_count{{method="{method}"}} 300' for method in ("prefill", "decode")]
    for name in ("request_duration", "request_queue_duration", "request_mean_time_per_token_duration"):
        lines += histogram(f"tgi_{name}", "", SECONDS["e2e_request_latency_seconds"])
    return ("\n".join(lines) + "\n").encode()


def llama_cpp_page() -> bytes:
    """As llama-server --metrics serves it."""
    values = {"prompt_tokens_total": 900, "tokens_predicted_total": 400, "n_decode_total": 300}
    values |= {"requests_processing": 2, "requests_deferred": 0}
    return "".join(f"llamacpp:{name} {value}\n" for name, value in values.items()).encode()


def histogram(name: str, labels: str, buckets: Iterable[tuple[str, float]]) -> list[str]:
    comma, outer = ("," if labels else ""), (f"{{{labels}}}" if labels else "")
    lines = [f'{name}_bucket{{{labels}{comma}le="{bound}"}} {count}' for bound, count in buckets]
    count = list(buckets)[-1][1]
    return [f"{name}_sum{outer} {count * 0.5}", *lines, f"{name}_count{outer} {count}"]
