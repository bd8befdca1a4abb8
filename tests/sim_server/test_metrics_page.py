"""The simulated page against pages that real vLLM served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvwatt.state import EngineShape
from kvwatt_sim.engine import Counters
from kvwatt_sim.server.families import Layout, length_buckets
from kvwatt_sim.server.page import Finished, Gauges, MetricsPage, PageShape

REAL_PAGES = Path(__file__).parents[3] / "shared" / "data" / "vllm_metrics"
CASES = [
    (Layout.V0_32, "v0.32.0_idle.txt"),
    (Layout.V0_32, "v0.32.0_load.txt"),
    (Layout.V0_32, "v0.32.0_kv_pressure.txt"),
    (Layout.V0_31, "v0.31.0.txt"),
    (Layout.V0_27, "v0.27.1.txt"),
]


def new_page(layout: Layout = Layout.V0_32) -> MetricsPage:
    """A page of the engine that the real pages were taken from."""
    return MetricsPage(PageShape("tiny", EngineShape(block_size=32, num_blocks=4096), 2048, layout))


@dataclass(frozen=True)
class FamilyView:
    """What a reader of the page can know of one family."""

    kind: str
    documentation: str
    label_names: frozenset[frozenset[str]]
    label_values: frozenset[tuple[str, str]]
    bounds: tuple[str, ...]


def families(text: str) -> dict[str, FamilyView]:
    """All vllm: families of a page. Values of labels that describe one deployment are left out."""
    views = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("vllm:"):
            continue
        labels = [sample.labels for sample in family.samples]
        enumerated = {"reason", "source", "sleep_state", "finished_reason", "engine"}
        views[family.name] = FamilyView(
            family.type,
            family.documentation,
            frozenset(frozenset(item) for item in labels),
            frozenset((k, v) for item in labels for k, v in item.items() if k in enumerated),
            tuple(dict.fromkeys(item["le"] for item in labels if "le" in item)),
        )
    return views


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_every_vllm_family_is_as_on_the_real_page(layout: Layout, name: str) -> None:
    """Names, types, HELP, labels and bucket bounds are those of real vLLM; no family is left out."""
    path = REAL_PAGES / name
    if not path.exists():
        pytest.skip(f"recorded vLLM pages are not here: {path}")
    real = families(path.read_text())
    simulated = families(new_page(layout).render().decode())
    assert len(real) > 30
    assert simulated == real


def test_http_and_process_families_are_as_on_the_real_page() -> None:
    """The families that vLLM's web framework and Python client add have the same names, types and labels."""
    path = REAL_PAGES / "v0.32.0_load.txt"
    if not path.exists():
        pytest.skip(f"recorded vLLM pages are not here: {path}")
    page = new_page()
    page.http.observe("/v1/completions", 200, 0.2, 100)

    def shapes(text: str) -> dict[str, tuple[str, frozenset[frozenset[str]]]]:
        return {
            family.name: (family.type, frozenset(frozenset(sample.labels) for sample in family.samples))
            for family in text_string_to_metric_families(text)
            if not family.name.startswith("vllm:")
        }

    assert shapes(page.render().decode()) == shapes(path.read_text())


def value(page: MetricsPage, name: str, **labels: str) -> float:
    """One sample of the rendered page."""
    found = [
        sample.value
        for family in text_string_to_metric_families(page.render().decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_a_finished_request_moves_every_histogram_of_requests_once() -> None:
    """Lengths and times of a finished request are observed once each, the way vLLM derives them."""
    page = new_page()
    page.finished(
        Finished(
            reason="length",
            prompt_tokens=100,
            cached_tokens=30,
            generation_tokens=11,
            max_tokens=11,
            preemptions=2,
            e2e_s=4.0,
            queue_s=1.0,
            prefill_s=0.5,
            decode_s=2.0,
        )
    )
    page.answered(1, 11)
    sums = {
        "request_prompt_tokens": 100,
        "request_generation_tokens": 11,
        "request_max_num_generation_tokens": 11,
        "request_params_n": 1,
        "request_params_max_tokens": 11,
        "request_num_preemptions": 2,
        "request_prefill_kv_computed_tokens": 70,
        "request_time_per_output_token_seconds": 0.2,
        "e2e_request_latency_seconds": 4.0,
        "request_queue_time_seconds": 1.0,
        "request_inference_time_seconds": 2.5,
        "request_prefill_time_seconds": 0.5,
        "request_decode_time_seconds": 2.0,
    }
    for name, expected in sums.items():
        assert value(page, f"vllm:{name}_sum") == pytest.approx(expected), name
        assert value(page, f"vllm:{name}_count") == 1, name
    assert value(page, "vllm:request_success_total", finished_reason="length") == 1
    assert value(page, "vllm:request_success_total", finished_reason="stop") == 0


def test_prompt_tokens_split_into_computed_and_cached() -> None:
    """Sources of prompt tokens sum to the prompt tokens, and prefix hits to the cached ones."""
    page = new_page()
    before = Counters(prompt_tokens=7, generation_tokens=5)
    now = Counters(
        prompt_tokens=107,
        prompt_tokens_cached=30,
        generation_tokens=9,
        preemptions=1,
        prefix_cache_queries=100,
        prefix_cache_hits=30,
    )
    page.progress(now, before)
    assert value(page, "vllm:prompt_tokens_total") == 100
    assert value(page, "vllm:prompt_tokens_by_source_total", source="local_compute") == 70
    assert value(page, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 30
    assert value(page, "vllm:prompt_tokens_cached_total") == 30
    assert value(page, "vllm:prompt_tokens_cached_by_source_total", source="device") == 30
    assert value(page, "vllm:prefix_cache_queries_total") == 100
    assert value(page, "vllm:prefix_cache_hits_total") == 30
    assert value(page, "vllm:num_preemptions_total") == 1
    assert value(page, "vllm:generation_tokens_total") == 4
    assert value(page, "vllm:iteration_tokens_total_sum") == 74


def test_waiting_by_reason_sums_to_waiting() -> None:
    """Queued requests wait for capacity; the simulator defers none."""
    page = new_page()
    page.scheduler(Gauges(running=3, waiting=5, kv_usage=0.25))
    assert value(page, "vllm:num_requests_running") == 3
    assert value(page, "vllm:num_requests_waiting") == 5
    assert value(page, "vllm:num_requests_waiting_by_reason", reason="capacity") == 5
    assert value(page, "vllm:num_requests_waiting_by_reason", reason="deferred") == 0
    assert value(page, "vllm:kv_cache_usage_perc") == 0.25


def test_cache_config_tells_the_cache_size() -> None:
    """Blocks, tokens per block and their product are labels of the info gauge."""
    page = new_page()
    labels = {"block_size": "32", "num_gpu_blocks": "4096", "kv_cache_size_tokens": "131072"}
    assert value(page, "vllm:cache_config_info", engine="0", **labels) == 1


@pytest.mark.parametrize(
    ("max_model_len", "last"), [(1, 1.0), (2048, 2000.0), (4999, 2000.0), (5000, 5000.0), (32768, 20000.0)]
)
def test_length_buckets_end_at_the_longest_model_length(max_model_len: int, last: float) -> None:
    """Token histograms grow 1-2-5 up to the longest request that the model accepts."""
    bounds = length_buckets(max_model_len)
    assert bounds[-1] == last
    assert list(bounds) == sorted(set(bounds))
