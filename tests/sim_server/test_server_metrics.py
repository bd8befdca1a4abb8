"""The metrics of the simulated server move with its requests, and nothing gets lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kvwatt_sim.server.launch import SimServer

LENGTHS = [(30 + 37 * i % 400, 5 + 11 * i % 60) for i in range(24)]


async def test_tokens_and_requests_are_conserved(connect: Callable[[SimServer], Any]) -> None:
    """What the counters and histograms say is what the clients sent and got."""
    with SimServer(card="l20", time_scale=4, max_num_seqs=16) as server:
        client = connect(server)
        async with client.http:
            answers = await asyncio.gather(
                *(client.stream(prompt=[1] * prompt, max_tokens=output) for prompt, output in LENGTHS)
            )
            page = await client.page()
    prompts = sum(prompt for prompt, _ in LENGTHS)
    outputs = sum(output for _, output in LENGTHS)
    requests = len(LENGTHS)
    assert sum(answer.tokens for answer in answers) == outputs
    assert page.value("vllm:generation_tokens_total") == outputs
    assert page.value("vllm:prompt_tokens_total") == prompts
    assert page.value("vllm:iteration_tokens_total_sum") == prompts + outputs
    assert page.value("vllm:request_success_total", finished_reason="length") == requests
    assert page.value("vllm:request_prompt_tokens_sum") == prompts
    assert page.value("vllm:request_generation_tokens_sum") == outputs
    assert page.value("vllm:request_params_max_tokens_sum") == outputs
    assert page.value("vllm:request_params_n_count") == requests
    assert page.value("vllm:time_to_first_token_seconds_count") == requests
    assert page.value("vllm:inter_token_latency_seconds_count") == outputs - requests
    for name in ("e2e_request_latency", "request_queue_time", "request_decode_time"):
        assert page.value(f"vllm:{name}_seconds_count") == requests
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert page.value(f"vllm:{name}") == 0
    assert page.value("http_requests_total", handler="/v1/completions", status="2xx") == requests


async def test_times_of_a_request_add_up(connect: Callable[[SimServer], Any]) -> None:
    """Queue, prefill and decode time make the latency; the gaps between tokens make the decode time."""
    with SimServer(card="l20", time_scale=4) as server:
        client = connect(server)
        async with client.http:
            await asyncio.gather(*(client.stream(prompt=[1] * 300, max_tokens=20) for _ in range(4)))
            page = await client.page()

    def seconds(name: str) -> float:
        return page.value(f"vllm:{name}_seconds_sum")

    inference = seconds("request_prefill_time") + seconds("request_decode_time")
    assert seconds("request_inference_time") == pytest.approx(inference)
    assert seconds("e2e_request_latency") == pytest.approx(inference + seconds("request_queue_time"))
    assert seconds("request_decode_time") == pytest.approx(seconds("inter_token_latency"))
    first = seconds("request_queue_time") + seconds("request_prefill_time")
    assert seconds("time_to_first_token") == pytest.approx(first)


async def test_gauges_show_batch_queue_and_cache(connect: Callable[[SimServer], Any]) -> None:
    """With room for two, four requests are two running and two waiting for capacity."""
    with SimServer(card="l20", max_num_seqs=2, max_num_batched_tokens=256, num_blocks=1001) as server:
        client = connect(server)
        async with client.http:
            asking = [asyncio.create_task(client.post(prompt=[1] * 80, max_tokens=3000)) for _ in range(4)]
            page = await client.page_when(lambda page: page.value("vllm:num_requests_waiting") == 2)
            assert page.value("vllm:num_requests_waiting_by_reason", reason="capacity") == 2
            page = await client.page_when(lambda page: page.value("vllm:num_requests_running") == 2)
            # two prompts of 80 tokens: at least 10 of the 1,000 usable blocks
            assert 0.01 <= page.value("vllm:kv_cache_usage_perc") <= 0.5
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


async def test_a_client_that_hangs_up_frees_its_blocks(client: Any) -> None:
    """A stream closed half-way leaves batch and KV cache; vLLM does not count it as finished."""
    before = await client.page()
    async with client.http.stream(
        "POST", "/v1/completions", json={"prompt": [1] * 500, "max_tokens": 5000, "stream": True}
    ) as response:
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        assert (await client.page()).value("vllm:kv_cache_usage_perc") > 0
    page = await client.page_when(lambda page: page.value("vllm:num_requests_running") == 0)
    assert page.value("vllm:kv_cache_usage_perc") == 0
    for reason in ("abort", "stop", "length"):
        name = "vllm:request_success_total"
        assert page.value(name, finished_reason=reason) == before.value(name, finished_reason=reason)
    assert (await client.http.get("/load")).json() == {"server_load": 0}


async def test_a_small_cache_preempts_and_loses_no_token(connect: Callable[[SimServer], Any]) -> None:
    """When blocks run out requests are preempted and recomputed; every client still gets all tokens."""
    with SimServer(card="l20", time_scale=8, num_blocks=33, max_num_seqs=8) as server:
        client = connect(server)
        async with client.http:
            answers = await asyncio.gather(
                *(client.stream(prompt=[1] * 20, max_tokens=120) for _ in range(8))
            )
            page = await client.page()
    assert [answer.tokens for answer in answers] == [120] * 8
    preemptions = page.value("vllm:num_preemptions_total")
    assert preemptions > 0
    assert page.value("vllm:request_num_preemptions_sum") == preemptions
    assert page.value("vllm:generation_tokens_total") == 8 * 120


async def test_prefix_hits_are_counted_and_not_computed(connect: Callable[[SimServer], Any]) -> None:
    """With half of each prompt cached, half of its blocks are hits and only the rest is computed."""
    with SimServer(card="l20", time_scale=4, prefix_hit_ratio=0.5) as server:
        client = connect(server)
        async with client.http:
            await client.post(prompt=[1] * 321, max_tokens=2)
            page = await client.page()
    hits = page.value("vllm:prefix_cache_hits_total")
    assert hits == 160
    assert page.value("vllm:prefix_cache_queries_total") == 321
    assert page.value("vllm:prompt_tokens_cached_total") == hits
    assert page.value("vllm:prompt_tokens_by_source_total", source="local_compute") == 321 - hits
    assert page.value("vllm:request_prefill_kv_computed_tokens_sum") == 321 - hits
    assert page.value("vllm:iteration_tokens_total_sum") == 321 - hits + 2


async def test_estimated_work_grows_with_every_step(client: Any) -> None:
    """Floating point operations and bytes rise when tokens are made, and stand still when none are."""
    names = [f"vllm:estimated_{what}_per_gpu_total" for what in ("flops", "read_bytes", "write_bytes")]
    before = await client.page()
    await client.post(prompt=[1] * 50, max_tokens=3)
    middle, after = await client.page(), await client.page()
    for name in names:
        assert before.value(name) < middle.value(name) == after.value(name)


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("truncated", {}),
        ("garbage", {}),
        ("empty", {}),
        ("renamed", {}),
        ("nan", {}),
        ("two_engines", {}),
        ("missing_labels", {}),
        ("huge", {"size_bytes": 100_000}),
    ],
)
async def test_misbehaviour_shows_over_http_and_ends_with_ok(
    client: Any, mode: str, settings: dict[str, object]
) -> None:
    """The page is another one while the mode is set, and the right one again afterwards."""
    right = (await client.http.get("/metrics")).content
    await asyncio.to_thread(client.server.misbehave, mode, **settings)
    wrong = (await client.http.get("/metrics")).content
    await asyncio.to_thread(client.server.misbehave, "ok")
    assert wrong != right
    assert len((await client.http.get("/metrics")).content.splitlines()) == len(right.splitlines())


async def test_errors_delays_and_stale_pages(client: Any) -> None:
    """500 is a server error, slow outlasts a deadline, stale stands still while tokens are made."""
    server: SimServer = client.server
    await asyncio.to_thread(server.misbehave, "500")
    assert (await client.http.get("/metrics")).status_code == 500
    await asyncio.to_thread(server.misbehave, "slow", delay_s=60)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await client.http.get("/metrics")
    await asyncio.to_thread(server.misbehave, "stale")
    frozen = await client.page()
    await client.post(prompt=[1] * 10, max_tokens=2)
    assert await client.page() == frozen
    await asyncio.to_thread(server.misbehave, "ok")
    name = "vllm:generation_tokens_total"
    assert (await client.page()).value(name) == frozen.value(name) + 2


async def test_counters_can_be_reset_like_those_of_a_restarted_engine(client: Any) -> None:
    """After a reset all totals start from zero, and go on counting."""
    await client.post(prompt=[1] * 10, max_tokens=2)
    assert (await client.page()).value("vllm:generation_tokens_total") >= 2
    await asyncio.to_thread(client.server.misbehave, "ok", reset_counters=True)
    assert (await client.page()).value("vllm:generation_tokens_total") == 0
    await client.post(prompt=[1] * 10, max_tokens=2)
    page = await client.page()
    assert page.value("vllm:generation_tokens_total") == 2
    assert page.value("vllm:engine_sleep_state", sleep_state="awake") == 1


async def test_unknown_misbehaviour_is_refused(client: Any) -> None:
    """A typo in a test is an error, not a healthy page."""
    assert (await client.http.post("/_sim/metrics", json={"mode": "odd"})).status_code == 422
