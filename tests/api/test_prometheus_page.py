"""The daemon's /metrics: valid exposition, base units, nothing invented for what is unknown."""

from __future__ import annotations

import re

import httpx
import pytest
from fake_plane import UUID
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

BASE_UNITS = ("_seconds", "_hertz", "_watts", "_joules", "_celsius", "_ratio", "_bytes", "_tokens")
# Plain counts, states and information have no unit.
UNITLESS = (
    "kvwatt_build_info",
    "kvwatt_guard_alarms",
    "kvwatt_gpu_energy_alarm",
    "kvwatt_config_reload_success",
    "kvwatt_config_restart_pending",
    "kvwatt_settings_over_rest",
    "kvwatt_api_token_alarm",
    "kvwatt_mode",
    "kvwatt_regime",
    "kvwatt_guard_state",
    "kvwatt_model_state",
    "kvwatt_model_drifted",
    "kvwatt_model_version",
    "kvwatt_model_last_refit",
    "kvwatt_model_samples",
    "kvwatt_energy_model_windows",
    "kvwatt_requests_running",
    "kvwatt_requests_waiting",
    "kvwatt_projected_requests",
    "kvwatt_telemetry_fresh",
    "kvwatt_slo_window_requests",
    "kvwatt_slo_window_missed",
    "kvwatt_slo_window_permitted",
    "kvwatt_tap_requests_known",
    "kvwatt_telemetry_source",
    "kvwatt_scheduler_held_requests",
    "kvwatt_scheduler_told",
    "kvwatt_scheduler_aside",
    "kvwatt_override_active",
    "kvwatt_gpu_clock_held",
    "kvwatt_gpu_clock_event",
    *(
        f"kvwatt_instances_{status}"
        for status in ["desired", "ready", "starting", "draining", "asleep", "stopped", "failed", "unknown"]
    ),
    "kvwatt_instance_capacity_requests",
    "kvwatt_ledger_alarm",
    "kvwatt_ledger_waiting_intervals",
    "kvwatt_holdout_active",
    "kvwatt_savings_disagreement_alarm",
    "kvwatt_pool_acting",
    "kvwatt_pool_fault",
    "kvwatt_pool_manual",
    "kvwatt_pool_plan_state",
    "kvwatt_forecast_requests",
)
NOT_BASE = re.compile(r"_(ms|us|milliseconds|minutes|mhz|megahertz|mj|mw|kwh|wh|percent|perc|bytes_kb)(_|$)")


@pytest.fixture
async def page(client: httpx.AsyncClient) -> str:
    return (await client.get("/metrics")).raise_for_status().text


@pytest.fixture
def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in parse_text(page)}


def value(families: dict[str, Metric], sample: str, **labels: str) -> float:
    found = [
        s.value
        for family in families.values()
        for s in family.samples
        if s.name == sample and labels.items() <= s.labels.items()
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]


def test_names_follow_the_prometheus_rules(families: dict[str, Metric]) -> None:
    """Names begin with kvwatt_, end in a base unit, and only counters end in _total."""
    assert len(families) > 40
    for name, family in families.items():
        assert re.fullmatch(r"kvwatt_[a-z0-9_]+", name), name
        assert "__" not in name, name
        assert not NOT_BASE.search(name), name
        assert not re.search(r"_(gauge|counter|histogram|count|sum|bucket)$", name), name
        assert family.type in ("gauge", "counter", "histogram"), name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
        if family.type != "counter":
            assert name.endswith(BASE_UNITS) or name in UNITLESS, name


def test_help_tells_the_unit(families: dict[str, Metric]) -> None:
    """Each HELP is one sentence, and names the unit that the name ends in."""
    words = {
        "_seconds": "seconds",
        "_hertz": "hertz",
        "_watts": "watts",
        "_joules": "joules",
        "_celsius": "Celsius",
    }
    for name, family in families.items():
        assert family.documentation.endswith("."), name
        for suffix, word in words.items():
            if name.endswith(suffix):
                assert word in family.documentation, name


def test_labels_say_instance_and_gpu(families: dict[str, Metric]) -> None:
    """GPU series carry instance and GPU; labels are lower case and no unit hides in them."""
    gpu_families = [f for n, f in families.items() if n.startswith("kvwatt_gpu_")]
    assert gpu_families
    for family in gpu_families:
        assert all({"instance", "gpu"} <= s.labels.keys() for s in family.samples)
    for family in families.values():
        for sample in family.samples:
            assert all(re.fullmatch(r"[a-z]+", label) for label in sample.labels)


def test_series_are_unique(families: dict[str, Metric]) -> None:
    """No series appears twice."""
    seen = [(s.name, tuple(sorted(s.labels.items()))) for f in families.values() for s in f.samples]
    assert len(seen) == len(set(seen))


def test_values_are_in_base_units(families: dict[str, Metric]) -> None:
    """Megahertz become hertz; the rest is taken over as it is."""
    of_gpu = {"instance": "chat", "gpu": UUID}
    assert value(families, "kvwatt_gpu_clock_target_hertz", **of_gpu) == 900e6
    assert value(families, "kvwatt_gpu_clock_actual_hertz", **of_gpu) == 885e6
    assert value(families, "kvwatt_gpu_power_watts", **of_gpu) == 151.5
    assert value(families, "kvwatt_gpu_energy_joules_total", **of_gpu) == 1234.5
    assert value(families, "kvwatt_gpu_clock_event", **of_gpu, reason="power_cap") == 1
    assert value(families, "kvwatt_gpu_clock_event", **of_gpu, reason="idle") == 0
    assert value(families, "kvwatt_step_time_error_ratio", instance="chat") == 0.25
    assert value(families, "kvwatt_slo_attainment_ratio", instance="chat", metric="tbt") == 0.99
    assert value(families, "kvwatt_decisions_total", instance="chat", binding="energy") == 100
    assert value(families, "kvwatt_telemetry_errors_total", instance="chat", cause="timeout") == 2


def test_exactly_one_state_is_current(families: dict[str, Metric]) -> None:
    """Of each enumeration one sample is 1, the others 0."""
    regimes = [s for s in families["kvwatt_regime"].samples if s.labels["instance"] == "chat"]
    assert sorted(s.value for s in regimes) == [0.0] * (len(regimes) - 1) + [1.0]
    assert value(families, "kvwatt_regime", instance="chat", regime="shadow") == 1
    assert value(families, "kvwatt_guard_state", state="connected") == 1
    assert value(families, "kvwatt_mode", mode="active") == 0


def test_decision_time_is_a_histogram(families: dict[str, Metric]) -> None:
    """Buckets are cumulative and end in +Inf with the count of all decisions."""
    samples = {
        (s.name, s.labels.get("le")): s.value for s in families["kvwatt_decision_duration_seconds"].samples
    }
    name = "kvwatt_decision_duration_seconds"
    assert samples[f"{name}_bucket", "0.001"] == 3
    assert samples[f"{name}_bucket", "+Inf"] == samples[f"{name}_count", None] == 5
    assert samples[f"{name}_sum", None] == 0.02


def test_unknown_is_absent_and_never_zero(families: dict[str, Metric]) -> None:
    """Of an instance that was never seen there is a regime but no load, clock or energy."""
    blind = [s for f in families.values() for s in f.samples if "lind" in s.labels.get("instance", "")]
    names = {s.name for s in blind}
    assert "kvwatt_regime" in names
    for absent in ("requests_running", "gpu_clock_actual_hertz", "gpu_power_watts", "telemetry_age_seconds"):
        assert f"kvwatt_{absent}" not in names
    assert "kvwatt_gpu_energy_joules_total" not in names


def test_label_values_are_escaped(families: dict[str, Metric]) -> None:
    """Quotes, backslashes and newlines in an instance's name survive the round trip."""
    names = {s.labels["instance"] for s in families["kvwatt_regime"].samples}
    assert names == {"chat", 'b"\\\nlind'}


def test_savings_are_labelled_an_estimate(families: dict[str, Metric]) -> None:
    """Name, HELP and a label say that the figure is an estimate against a baseline."""
    family = families["kvwatt_energy_saved_estimate_joules"]
    assert "estimate" in family.documentation
    [sample] = family.samples
    assert "default clocks" in sample.labels["baseline"]


async def test_openmetrics_is_served_on_request(client: httpx.AsyncClient) -> None:
    """A scraper that asks for OpenMetrics gets it, valid."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = await client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = list(parse_openmetrics(response.text))  # type: ignore[no-untyped-call]
    assert len(families) > 40
