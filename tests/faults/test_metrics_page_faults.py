"""Whatever becomes of the metrics page, no clock is lowered on it, and control comes back by itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest
from daemon_process import eventually
from fault_stage import FAILSAFE_BOUND_S, FLOOR_MHZ, GENEROUS, Stage, target_mhz


@dataclass(frozen=True)
class PageFault:
    """A way for the page to be wrong, and how the daemon shall call it."""

    mode: str
    cause: str
    told: str
    settings: dict[str, object] = field(default_factory=dict)


# Met at about 1100 MHz under this load.
NARROW = {"tbt": {"limit_s": 0.035, "quantile": 0.95}}
RUNNING, KV_USAGE = "num_requests_running", "kv_cache_usage_perc"
FAULTS = {
    "garbage": PageFault("garbage", "truncated", "newline", {"size_bytes": 50_000}),
    "truncated": PageFault("truncated", "truncated", ""),
    "empty": PageFault("empty", "not_vllm", "the page is empty"),
    "renamed": PageFault("renamed", "missing_series", f"vllm:{KV_USAGE}"),
    "nan": PageFault("nan", "bad_value", "nan"),
    "nan_in_one_series": PageFault("nan", "bad_value", RUNNING, {"names": [f"vllm:{RUNNING}"]}),
    "huge": PageFault("huge", "too_large", "more than 1048576 bytes"),
    "http_500": PageFault("500", "http_status", "HTTP 500"),
    "missing_labels": PageFault("missing_labels", "missing_label", "model_name"),
    "two_engines": PageFault("two_engines", "ambiguous_engine", "engine=1"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_page_means_driver_default_until_good_pages_come_again(stage: Stage, fault: PageFault) -> None:
    """A page that cannot be trusted means FAILSAFE with its cause named; good pages lead back to control."""
    before = stage.moment()
    stage.server.misbehave(fault.mode, **fault.settings)
    failed = stage.daemon.wait_for("failsafe")
    stage.default_within(FAILSAFE_BOUND_S, before.t_s)
    default_s = time.monotonic()
    assert failed["regime_reason"].startswith(f"telemetry: {fault.cause}: ")
    assert fault.told.lower() in failed["regime_reason"].lower()
    _keeps_failing(stage, fault.cause, before.errors.get(fault.cause, 0.0))
    stage.nothing_lowered(before, default_s)
    assert f"telemetry: {fault.cause}: " in stage.said_since(before)
    assert f"active -> failsafe: telemetry: {fault.cause}" in stage.said_since(before)
    stage.server.misbehave("ok")
    stage.control()


def _keeps_failing(stage: Stage, cause: str, already: float) -> None:
    """Three polls fail, and the metrics tell."""
    eventually(
        lambda: stage.daemon.metric("kvwatt_telemetry_errors_total", cause=cause) >= already + 3,
        lambda: f"{cause} counted\n{stage.daemon.describe()}",
    )
    assert stage.daemon.metric("kvwatt_regime", regime="failsafe") == 1.0
    assert stage.daemon.metric("kvwatt_telemetry_fresh") == 0.0


def test_a_slow_page_means_driver_default_once_the_last_good_one_is_stale(stage: Stage) -> None:
    """Scrapes that miss their deadline are tolerated until the newest page is too old, and no longer."""
    before = stage.moment()
    stage.server.misbehave("slow", delay_s=10.0)
    failed = stage.daemon.wait_for("failsafe")
    stage.default_within(FAILSAFE_BOUND_S, before.t_s)
    default_s = time.monotonic()
    assert "newest page is" in failed["regime_reason"] and "s old" in failed["regime_reason"]
    _keeps_failing(stage, "timeout", before.errors.get("timeout", 0.0))
    stage.nothing_lowered(before, default_s)
    assert "telemetry: timeout: " in stage.said_since(before)
    stage.server.misbehave("ok")
    stage.control()


def test_a_page_that_stands_still_while_requests_run_is_stale_whatever_its_age(stage: Stage) -> None:
    """A cached page with running requests and frozen counters says nothing about now: driver default."""
    eventually(lambda: bool(stage.daemon.instance()["running"]), stage.daemon.describe)
    before = stage.moment()
    _freeze_while_running(stage)
    frozen_s = time.monotonic()
    eventually(lambda: "stands still" in stage.daemon.instance()["regime_reason"], stage.daemon.describe)
    assert stage.daemon.instance()["regime"] == "failsafe"
    stage.default_within(FAILSAFE_BOUND_S, frozen_s)
    default_s = time.monotonic()
    time.sleep(1.0)
    stage.nothing_lowered(before, default_s)
    assert "active -> failsafe: telemetry: " in stage.said_since(before)
    stage.server.misbehave("ok")
    stage.control()


def _freeze_while_running(stage: Stage) -> None:
    """Freeze the page at a moment at which it shows running requests."""

    def frozen() -> bool:
        stage.server.misbehave("ok")
        stage.server.misbehave("stale")
        time.sleep(0.3)
        return bool(stage.daemon.instance()["running"])

    eventually(frozen, stage.daemon.describe)


def test_counters_that_start_again_lower_nothing_and_control_goes_on(stage: Stage) -> None:
    """A reset of all counters is told; it is no sign of less work, so a clock that is needed is kept."""
    assert stage.daemon.put("/api/v1/slos/sim", NARROW).status_code == 200
    eventually(lambda: (stage.held_mhz or 0) > FLOOR_MHZ, stage.daemon.describe)
    before = stage.moment()
    stage.server.misbehave("ok", reset_counters=True)
    eventually(lambda: "counters went back" in stage.said_since(before), stage.daemon.describe)
    time.sleep(2.0)
    assert all(target_mhz(call) > FLOOR_MHZ for call in stage.sets_since(before.t_s))
    attained = stage.daemon.instance()["attainment"].values()
    assert attained and all(item["ratio"] is None or item["ratio"] <= 1.0 for item in attained)
    assert stage.daemon.put("/api/v1/slos/sim", GENEROUS).status_code == 200
    stage.control()
