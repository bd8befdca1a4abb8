"""Other engines than vLLM: read where their page tells enough, refused with the reason where it does not."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from engine_pages import GAUGES, MODEL, TOKENS, histogram, llama_cpp_page, sglang_page, tgi_page
from http_fakes import always, http, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_pages import read_page

from kvwatt.state import EngineSnapshot
from kvwatt.traffic import interval, kv_capacity_tokens, kv_used_tokens
from kvwatt_sim.sglang_page import SglangPage
from kvwattd.telemetry import sglang
from kvwattd.telemetry.engines import adapter, parse, self_test
from kvwattd.telemetry.exposition import MetricsError
from kvwattd.telemetry.poller import Poller
from kvwattd.telemetry.vllm_metrics import counters_reset


def refusal(page: bytes) -> MetricsError:
    with pytest.raises(MetricsError) as caught:
        parse(page, 1.0)
    return caught.value


def without(page: bytes, name: str) -> bytes:
    kept = [line for line in page.splitlines(keepends=True) if not line.startswith(name.encode())]
    return b"".join(kept)


def test_each_engine_is_known_by_its_page() -> None:
    """Nobody tells kvwatt which engine serves: the names of the series do."""
    pages = {"SGLang": sglang_page(), "TGI": tgi_page(), "llama.cpp": llama_cpp_page()}
    assert {kind: adapter(page).kind for kind, page in pages.items()} == {kind: kind for kind in pages}
    assert adapter(read_page()).kind == "vLLM" and self_test(read_page()).kind == "vLLM"
    assert adapter(b"python_info 1\n").kind == "vLLM"  # whose refusal says what a page must have


def test_a_page_of_two_engines_is_refused() -> None:
    """Behind a proxy that joins pages nobody knows whose numbers these are."""
    error = refusal(sglang_page() + tgi_page())
    assert (error.kind, error.names) == ("ambiguous_engine", ("SGLang", "TGI"))


def test_values_are_those_on_sglangs_page() -> None:
    """Steps, tokens and the KV cache come from the series that move while requests run."""
    snapshot = parse(sglang_page(), 7.5)
    assert (snapshot.observed_s, snapshot.model_name, snapshot.engine) == (7.5, "llama", "0")
    assert (snapshot.running, snapshot.waiting, snapshot.waiting_for_capacity) == (12, 3, 0)
    assert snapshot.iterations.count == 520
    assert (snapshot.prompt_tokens_total, snapshot.prompt_tokens_cached_total) == (20_400, 400)
    assert (snapshot.generation_tokens_total, snapshot.requests_finished_total) == (5100, 38)
    assert (kv_capacity_tokens(snapshot), round(kv_used_tokens(snapshot))) == (100_000, 30_000)
    assert snapshot.preemptions_total == 0.0  # the counter is there from the first retraction on
    assert snapshot.tbt_s is snapshot.itl_s and snapshot.ttft_s.count == 40


def test_sglang_is_accepted_with_what_it_does_not_tell() -> None:
    """The report names the promises' weak points; doctor tells them."""
    report = self_test(sglang_page())
    assert report.accepted and (report.kind, report.layout) == ("SGLang", "sglang")
    assert any("--decode-log-interval" in caveat for caveat in report.caveats)


def test_two_pages_of_sglang_tell_what_happened_between() -> None:
    """The same interval arithmetic as for vLLM, and a restart is seen."""
    old = parse(sglang_page(), 1.0)
    later = sglang_page().replace(b'mode="decode_cuda_graph"} 500.0', b'mode="decode_cuda_graph"} 530.0')
    later = later.replace(b'mode="decode"} 5100.0', b'mode="decode"} 5460.0')
    step = interval(old, parse(later, 2.0))
    assert (step.iterations, step.generation_tokens, step.prompt_tokens) == (30, 360, 0)
    assert not counters_reset(old, parse(later, 2.0)) and counters_reset(parse(later, 2.0), old)


@pytest.mark.parametrize("name", sglang.REQUIRED)
def test_sglang_without_a_needed_series_is_refused_by_name(name: str) -> None:
    """Never read as zero."""
    page = without(sglang_page(), f"sglang:{name}")
    assert refusal(page).kind == "missing_series"
    assert refusal(page).names == self_test(page).missing == (f"sglang:{name}",)


def test_sglang_without_lengths_names_the_option_to_start_it_with() -> None:
    """The refusal says what the operator can do."""
    assert "--collect-tokens-histogram" in str(refusal(sglang_page(histograms=False)))


def test_ranks_of_one_engine_are_not_summed() -> None:
    """Tensor-parallel ranks repeat the scheduler's numbers."""
    assert parse(sglang_page(ranks=4), 1.0) == parse(sglang_page(), 1.0)


def test_label_sets_of_the_whole_engine_are_summed() -> None:
    """Latencies split by a label (streaming or not, a tenant) are those of one engine."""
    name = "generation_tokens_histogram"
    more = histogram(f"sglang:{name}", MODEL + ',tenant="b"', TOKENS[name])
    both = parse(sglang_page() + ("\n".join(more) + "\n").encode(), 1.0).generation_lengths
    assert (both.count, both.cumulative) == (76, (40, 70, 76))
    other = [line.replace('le="300.0"', 'le="400.0"') for line in more]
    assert refusal(sglang_page() + ("\n".join(other) + "\n").encode()).kind == "bad_value"


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_half_an_sglang_server_is_refused(role: str) -> None:
    """A prefill or decode server knows only half of each request."""
    page = sglang_page().replace(b'engine_type="unified"', f'engine_type="{role}"'.encode())
    assert refusal(page).kind == "unknown_engine" and role in refusal(page).detail


def test_data_parallel_sglang_is_refused() -> None:
    """Its latencies cannot be told apart by engine."""
    two = b"".join(
        sglang_page().replace(b'pp_rank="0"', f'dp_rank="{rank}",pp_rank="0"'.encode()) for rank in (0, 1)
    )
    assert refusal(two).kind == "ambiguous_engine"


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf"), 1e300, 2.5])
def test_nonsense_in_sglangs_gauges_is_refused(value: float) -> None:
    """As with vLLM."""
    assert refusal(sglang_page({**GAUGES, "num_running_reqs": value})).kind == "bad_value"
    assert refusal(sglang_page({**GAUGES, "token_usage": max(value, 1.5)})).kind == "bad_value"
    assert refusal(sglang_page({**GAUGES, "max_total_num_tokens": 0.0})).kind == "bad_value"


@pytest.mark.parametrize(("page", "kind"), [(tgi_page(), "TGI"), (llama_cpp_page(), "llama.cpp")])
def test_what_cannot_be_steered_says_why(page: bytes, kind: str) -> None:
    """Driver default, and the reason in words; never a snapshot with gaps."""
    report = self_test(page)
    assert not report.accepted and report.kind == kind and report.missing
    error = refusal(page)
    assert error.kind == "missing_series" and error.names == report.missing
    assert f"{kind} is not steered" in error.detail and "KV cache" in error.detail


async def test_the_poller_reads_whichever_engine_answers() -> None:
    """The same poller, without a word of configuration; its layout tells the engine."""
    async with serve(always(http(sglang_page()))) as url:
        poller = Poller(url, 20.0)
        snapshot = await poller.poll(time.monotonic)
        report = await poller.check_layout()
        await poller.close()
    assert replace(snapshot, observed_s=1.0) == parse(sglang_page(), 1.0)
    assert (poller.layout, report.kind) == ("sglang", "SGLang")


PAGES = (sglang_page(), sglang_page(ranks=2), tgi_page(), llama_cpp_page())
PIECES = st.sampled_from(
    [
        b"NaN",
        b"-1",
        b"+Inf",
        b"1e400",
        b"{",
        b"}",
        b'"',
        b"\n",
        b",",
        b"\\",
        b'le="',
        b'tp_rank="x"',
        b"0",
        b" ",
    ]
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_page_breaks_a_parser(data: st.DataObject) -> None:
    """Bytes overwritten, cut out, doubled or moved: a snapshot or a MetricsError, nothing else."""
    mutated = bytearray(data.draw(st.sampled_from(PAGES)))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(mutated)))
        end = min(start + data.draw(st.integers(0, 60)), len(mutated))
        mutated[start:end] = data.draw(PIECES) + bytes(mutated[start:end]) * data.draw(st.integers(0, 2))
    page = bytes(mutated)
    for read in (lambda: assert_sound(parse(page, 1.0)), lambda: self_test(page)):
        try:
            read()
        except MetricsError as error:
            assert error.kind and error.detail


def assert_sound(snapshot: EngineSnapshot) -> None:
    assert 0.0 <= snapshot.kv_usage <= 1.0
    assert min(snapshot.running, snapshot.waiting) >= 0 and snapshot.num_blocks >= 2
    for h in (snapshot.iterations, snapshot.ttft_s, snapshot.itl_s, snapshot.e2e_s):
        assert h.cumulative[-1] == h.count >= 0 and h.sum >= 0


def test_the_simulated_page_says_of_an_engine_what_vllms_does() -> None:
    """Told in SGLang's words and read back: the same engine, but for what those words leave out."""
    told = parse(read_page(), 3.0)
    page = SglangPage(decode_log_interval=1)
    page.look(told)
    read = parse(page.render(told), 3.0)
    same = ("running", "waiting", "model_name", "prompt_tokens_total", "generation_tokens_total")
    assert all(getattr(read, name) == getattr(told, name) for name in same)
    assert (kv_capacity_tokens(read), read.kv_usage) == (kv_capacity_tokens(told), told.kv_usage)
    assert (read.iterations.count, read.ttft_s, read.e2e_s) == (
        told.iterations.count,
        told.ttft_s,
        told.e2e_s,
    )
    assert read.tbt_s == told.itl_s


def test_the_simulated_gauges_are_as_old_as_the_log_interval() -> None:
    """Between two log steps the counts of steps and latencies move, the gauges do not."""
    told = parse(read_page(), 3.0)
    steps = told.iterations
    before = replace(told, iterations=replace(steps, count=80.0, cumulative=(80.0,), bounds=(float("inf"),)))
    page = SglangPage(decode_log_interval=40)
    page.look(before)
    for count, running in ((119.0, told.running), (120.0, 1)):
        now = replace(
            before, running=1, iterations=replace(before.iterations, count=count, cumulative=(count,))
        )
        page.look(now)
        read = parse(page.render(now), 4.0)
        assert (read.running, read.iterations.count) == (running, count)


def test_an_idle_sglang_shows_its_last_batch_for_a_while() -> None:
    """As its sources have it; the daemon takes that for a page that stands still, which is the safe side."""
    told = parse(read_page(), 3.0)
    page = SglangPage(decode_log_interval=1)
    page.look(told)
    for now_s, running in ((4.0, told.running), (32.9, told.running), (33.0, 0)):
        idle = replace(told, observed_s=now_s, running=0, waiting=0)
        page.look(idle)
        assert parse(page.render(idle), now_s).running == running
