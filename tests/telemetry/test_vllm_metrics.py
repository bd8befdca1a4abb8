"""Real pages become snapshots with the right numbers; whatever is missing, mixed or nonsense is refused."""

from __future__ import annotations

import pytest
from vllm_pages import OLD_NAMES, REAL, in_layout, read_page, renamed, second_engine, with_value, without

from kvwattd.telemetry import layouts
from kvwattd.telemetry.vllm_metrics import MetricsError, counters_reset, parse, self_test

RUNNING = "vllm:num_requests_running"


def refusal(page: bytes, engine: str | None = None, model_name: str | None = None) -> MetricsError:
    with pytest.raises(MetricsError) as caught:
        parse(page, 1.0, engine, model_name)
    return caught.value


@pytest.mark.parametrize("name", REAL)
def test_real_pages_are_accepted(name: str) -> None:
    """Every real page passes the self-test and parses."""
    page = read_page(name)
    assert self_test(page).layout == "v0.20"
    assert self_test(page).engines == (("0", "tiny"),)
    assert parse(page, 1.0).model_name == "tiny"


def test_values_are_those_on_the_page() -> None:
    """A page under KV pressure gives the numbers that stand on it, with the time it was asked for."""
    snapshot = parse(read_page("v0.32.0_kv_pressure"), 12.5)
    assert snapshot.observed_s == 12.5
    assert (snapshot.running, snapshot.waiting, snapshot.waiting_for_capacity) == (16, 0, 0)
    assert snapshot.kv_usage == 0.9291338582677166
    assert (snapshot.block_size, snapshot.num_blocks) == (32, 128)
    assert snapshot.preemptions_total == 35
    assert (snapshot.prompt_tokens_total, snapshot.generation_tokens_total) == (1984, 10291)
    assert snapshot.requests_finished_total == 15
    assert (snapshot.generation_lengths.sum, snapshot.generation_lengths.count) == (7680, 15)
    assert snapshot.iterations.count == 861
    assert not snapshot.asleep


@pytest.mark.parametrize("layout", OLD_NAMES)
def test_older_layouts_are_recognised(layout: str) -> None:
    """A page in an older release's vocabulary gives the same snapshot, as far as that release tells."""
    page = in_layout(layout)
    assert self_test(page).layout == layout
    old, new = parse(page, 1.0), parse(read_page(), 1.0)
    assert (old.running, old.kv_usage, old.itl_s, old.e2e_s) == (
        new.running,
        new.kv_usage,
        new.itl_s,
        new.e2e_s,
    )
    assert old.tbt_s == (new.tbt_s if layout in ("v0.12", "v0.16") else new.itl_s)


REQUIRED = [name for name in layouts.LAYOUTS[0].required if name != "num_requests_waiting_by_reason"]


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_series_is_refused_by_name(name: str) -> None:
    """A page without a required series is refused, or read in a layout that never had it; never as zero."""
    page = without(read_page(), name)
    report = self_test(page)
    if report.accepted:
        older = next(layout for layout in layouts.LAYOUTS if layout.name == report.layout)
        assert name not in older.required
        return
    assert report.missing == ("vllm:" + name,)
    error = refusal(page)
    assert error.kind == "missing_series"
    assert error.names == ("vllm:" + name,)
    assert name in error.detail


def test_every_quantity_of_control_is_refused_when_renamed() -> None:
    """Renaming any series that no layout can do without leads to a refusal."""
    for name in (*layouts.COMMON, "kv_cache_usage_perc", "inter_token_latency_seconds"):
        assert refusal(renamed(read_page(), name, name + "_v2")).kind == "missing_series"


def test_without_capacity_reason_is_refused() -> None:
    """Waiting requests by reason without the reason `capacity` are an unknown layout, not zero."""
    page = read_page().replace(b'reason="capacity"', b'reason="kv_full"')
    assert refusal(page).kind == "missing_series"


def test_several_engines_are_never_mixed() -> None:
    """With two engines on the page one must be named; each then has its own numbers."""
    page = second_engine(read_page())
    error = refusal(page)
    assert error.kind == "ambiguous_engine"
    assert error.names == ("engine=0 model_name=tiny", "engine=1 model_name=tiny")
    assert parse(page, 1.0, engine="0").running == 32
    assert parse(page, 1.0, engine="1").running == 7


def test_several_models_are_told_apart_by_name() -> None:
    """Two models on one page are told apart by model_name."""
    other = with_value(read_page(), RUNNING, "3.0").replace(b'model_name="tiny"', b'model_name="big"')
    info = b"vllm:cache_config_info"
    lines = [li for li in other.splitlines(True) if li.startswith(b"vllm:") and not li.startswith(info)]
    page = read_page() + b"".join(lines)
    assert refusal(page).kind == "ambiguous_engine"
    assert parse(page, 1.0, model_name="big").running == 3


def test_an_engine_that_is_not_there_is_refused() -> None:
    """Asking for an engine the page lacks names those it has."""
    error = refusal(read_page(), engine="5")
    assert error.kind == "unknown_engine"
    assert "engine=0 model_name=tiny" in error.detail


@pytest.mark.parametrize("value", ["NaN", "-1.0", "+Inf", "-Inf", "1e300", "", "abc", "1_0", "2.5"])
def test_nonsense_in_a_gauge_is_refused(value: str) -> None:
    """A number of requests is finite, whole and not negative."""
    error = refusal(with_value(read_page(), RUNNING, value))
    assert error.kind == "bad_value"
    assert error.names == (RUNNING,)


@pytest.mark.parametrize("value", ["NaN", "-0.1", "1.1", "93.0"])
def test_usage_outside_0_to_1_is_refused(value: str) -> None:
    """KV usage lies in 0..1; a percentage is not silently taken for a ratio."""
    assert refusal(with_value(read_page(), "vllm:kv_cache_usage_perc", value)).kind == "bad_value"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"', "5.0"),
        ('vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"', "400.0"),
        ("vllm:time_to_first_token_seconds_count", "1.0"),
        ("vllm:time_to_first_token_seconds_sum", "NaN"),
        ("vllm:e2e_request_latency_seconds_sum", "-3"),
    ],
)
def test_histograms_that_contradict_themselves_are_refused(line: str, value: str) -> None:
    """Buckets are cumulative and end at the count; sums are finite and not negative."""
    error = refusal(with_value(read_page(), line, value))
    assert error.kind == "bad_value"
    assert line.split("{")[0].removesuffix("_sum").removesuffix("_count").removesuffix("_bucket") in str(
        error.names[0]
    )


@pytest.mark.parametrize("label", ['num_gpu_blocks="16384"', 'block_size="128"'])
@pytest.mark.parametrize("value", ["None", "0", "-4", "x"])
def test_unknown_cache_size_is_refused(label: str, value: str) -> None:
    """A cache whose size is not stated cannot be projected."""
    broken = label.partition("=")[0] + f'="{value}"'
    page = read_page().replace(b"," + label.encode(), b"," + broken.encode())
    assert refusal(page).kind == "bad_value"


def test_stated_cache_size_in_tokens_counts() -> None:
    """With several KV cache groups the stated size in tokens bounds the room, not blocks x block size."""
    page = read_page().replace(b'kv_cache_size_tokens="2097152"', b'kv_cache_size_tokens="1048576"')
    assert parse(page, 1.0).num_blocks == 8192


def test_a_sleeping_engine_is_seen() -> None:
    """An engine whose sleep state is not awake is asleep."""
    page = with_value(
        read_page(), 'vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="a', "0.0"
    )
    assert parse(page, 1.0).asleep


def test_a_cut_page_is_never_a_snapshot_with_less_in_it() -> None:
    """Cut anywhere, a page either is refused or still says everything it said."""
    page = read_page()
    whole = parse(page, 1.0)
    refused = 0
    for length in range(0, len(page), 97):
        try:
            assert parse(page[:length], 1.0) == whole
        except MetricsError:
            refused += 1
    assert refused > 400


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (b"", "not_vllm"),
        (b"\n\n", "not_vllm"),
        (b"<html>hello</html>\n", "not_vllm"),
        (b"\xff\xfe\x00garbage\x00\n", "not_vllm"),
        (b"# TYPE python_info gauge\npython_info 1.0\n", "not_vllm"),
        (b"vllm:num_requests_running", "truncated"),
        (b"vllm:num_requests_running{\xff\xfe} 1\n", "bad_value"),
        (b'vllm:num_requests_running{engine="0",engine="1"} 1\n', "bad_value"),
        (b'vllm:num_requests_running{engine="0" 1\n', "bad_value"),
    ],
)
def test_what_is_not_a_vllm_page_is_refused(page: bytes, kind: str) -> None:
    """Empty, foreign, binary or broken pages are refused with the kind of fault."""
    assert refusal(page).kind == kind


def test_a_page_served_twice_in_one_is_refused() -> None:
    """Duplicate series contradict each other and are refused."""
    assert refusal(read_page() * 2).kind == "bad_value"


def test_escaped_labels_are_read() -> None:
    """Quotes, backslashes and spaces in a model's name come through."""
    page = read_page().replace(b'model_name="tiny"', b'model_name="a \\"b\\" \\\\c"')
    assert parse(page, 1.0).model_name == 'a "b" \\c'


def test_a_restart_is_seen_by_its_counters() -> None:
    """Counters that go back tell a restart; counters that stand or grow do not."""
    idle, busy = parse(read_page("v0.32.0_idle"), 1.0), parse(read_page(), 2.0)
    assert not counters_reset(idle, busy)
    assert not counters_reset(busy, busy)
    assert counters_reset(busy, idle)
