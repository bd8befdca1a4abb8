"""Each misbehaviour of the simulated page does what its name says, and nothing else."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from kvwatt.state import EngineShape
from kvwatt_sim.server.faults import MetricsFault, Mode, distort
from kvwatt_sim.server.options import HELP_EPILOG
from kvwatt_sim.server.page import Gauges, MetricsPage, PageShape


@pytest.fixture(scope="module")
def page() -> bytes:
    """A page with some traffic on it."""
    page = MetricsPage(PageShape("sim", EngineShape(block_size=16, num_blocks=100), 1024))
    page.scheduler(Gauges(running=4, waiting=1, kv_usage=0.5))
    page.first_token(0.1)
    page.inter_token([0.02, 0.03])
    return page.render()


def samples(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def distorted(page: bytes, **fault: object) -> bytes:
    return distort(page, MetricsFault.model_validate(fault), frozen=b"old")


@pytest.mark.parametrize("mode", ["ok", "slow", "500"])
def test_modes_that_do_not_touch_the_body_leave_it_alone(page: bytes, mode: str) -> None:
    """The right page comes out unchanged."""
    assert distorted(page, mode=mode) == page


def test_truncated_is_a_prefix_that_ends_inside_a_line(page: bytes) -> None:
    """The last line of a truncated page is not whole."""
    cut = distorted(page, mode="truncated", fraction=0.5)
    assert page.startswith(cut)
    assert 0 < len(cut) < len(page)
    assert not cut.endswith(b"\n")


def test_garbage_is_no_metrics_page(page: bytes) -> None:
    """Random bytes are not even text."""
    garbage = distorted(page, mode="garbage", size_bytes=1000)
    assert len(garbage) == 1000
    with pytest.raises(UnicodeDecodeError):
        garbage.decode()


def test_empty_and_stale_ignore_the_page(page: bytes) -> None:
    """Empty has no bytes; stale repeats what was frozen."""
    assert distorted(page, mode="empty") == b""
    assert distorted(page, mode="stale") == b"old"


def test_renamed_gives_the_old_name_of_the_cache_gauge(page: bytes) -> None:
    """By default the cache usage appears under the name that vLLM dropped in 0.12."""
    names = {name for name, _ in samples(distorted(page, mode="renamed"))}
    assert "vllm:gpu_cache_usage_perc" in names
    assert "vllm:kv_cache_usage_perc" not in names


def test_renamed_takes_all_series_of_a_histogram(page: bytes) -> None:
    """A family's buckets, sum and count move together."""
    fault = {"vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds"}
    text = distorted(page, mode="renamed", renames=fault)
    assert b"inter_token_latency" not in text
    assert samples(text)["vllm:time_per_output_token_seconds_count", _ENGINE] == 2


_ENGINE = frozenset({("engine", "0"), ("model_name", "sim")})


def test_missing_drops_only_what_is_named(page: bytes) -> None:
    """A family disappears with its comments; every other series stays."""
    left = samples(distorted(page, mode="missing", names=["vllm:num_requests_running"]))
    gone = samples(page).keys() - left.keys()
    assert gone == {("vllm:num_requests_running", _ENGINE)}


def test_nan_reaches_every_vllm_series_or_the_named_ones(page: bytes) -> None:
    """Without names all of vLLM's values are NaN; with names only those."""
    everything = samples(distorted(page, mode="nan"))
    assert all(math.isnan(v) for (name, _), v in everything.items() if name.startswith("vllm:"))
    assert not any(math.isnan(v) for (name, _), v in everything.items() if not name.startswith("vllm:"))
    one = samples(distorted(page, mode="nan", names=["vllm:kv_cache_usage_perc"]))
    assert [key for key, v in one.items() if math.isnan(v)] == [("vllm:kv_cache_usage_perc", _ENGINE)]


def test_set_puts_contradictory_values(page: bytes) -> None:
    """A gauge can be given a value that no engine has."""
    values = samples(distorted(page, mode="set", values={"vllm:num_requests_running": -1.0}))
    assert values["vllm:num_requests_running", _ENGINE] == -1


def test_huge_is_valid_but_long(page: bytes) -> None:
    """The page grows by at least the asked bytes and still parses to the same samples."""
    huge = distorted(page, mode="huge", size_bytes=100_000)
    assert len(huge) >= len(page) + 100_000
    assert samples(huge) == samples(page)


def test_two_engines_double_every_engine_series(page: bytes) -> None:
    """A second engine shows the same series under its own label."""
    values = samples(distorted(page, mode="two_engines"))
    other = frozenset({("engine", "1"), ("model_name", "sim")})
    assert values["vllm:num_requests_running", _ENGINE] == values["vllm:num_requests_running", other] == 4


def test_missing_labels_leaves_the_other_labels(page: bytes) -> None:
    """Buckets keep `le`, but nothing tells the engine or the model."""
    values = samples(distorted(page, mode="missing_labels"))
    assert values["vllm:num_requests_running", frozenset()] == 4
    assert values["vllm:inter_token_latency_seconds_bucket", frozenset({("le", "0.025")})] == 1


def test_every_mode_is_described_in_the_help() -> None:
    """The command line's help names each mode."""
    listed = {line.split()[0] for line in HELP_EPILOG.splitlines() if line.startswith("  ") and line.strip()}
    assert {mode.value for mode in Mode} <= listed


@pytest.mark.parametrize("fault", [{"mode": "odd"}, {"delay_s": math.inf}, {"fraction": 2}, {"typo": 1}])
def test_unknown_faults_are_refused(fault: dict[str, object]) -> None:
    """A misspelt fault does not silently serve the real page."""
    with pytest.raises(ValidationError):
        MetricsFault.model_validate(fault)
