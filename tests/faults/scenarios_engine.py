"""vLLM itself and its metrics page."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import httpx
from daemon_process import eventually
from fault_load import Load
from fault_stage import FLOOR_MHZ, GENEROUS, SCRAPE_DEADLINE_S, STALE_AFTER_S, Stage
from scenario import Do, Scenario, becomes, grows
from scenarios_process import FAULT_S

SLO = "/api/v1/slos/sim"
# Met at about 1100 MHz under this load.
NARROW = {"tbt": {"limit_s": 0.035, "quantile": 0.95}}
STALE_S = STALE_AFTER_S + SCRAPE_DEADLINE_S + 1.0
# Standstill is told after two seconds of pages without progress.
STANDSTILL_S = 4.0
RUNNING = "vllm:num_requests_running"
SERVER_TIMEOUT_S = 90.0


def page(mode: str, **settings: Any) -> Do:
    return lambda stage: stage.server.misbehave(mode, **settings)


def well(stage: Stage) -> None:
    stage.server.misbehave("ok")


def kill(stage: Stage) -> None:
    stage.server.kill()


def start(stage: Stage) -> None:
    stage.server.start()


def server_signal(number: signal.Signals) -> Do:
    return lambda stage: os.kill(stage.server.pid, number)


def other_model(stage: Stage) -> None:
    """The server comes back at its port with another model, and with requests for that."""
    stage.server.kill()
    stage.server.start(model_name="another")
    stage.extra_load = Load(stage.server.base_url, model="another").__enter__()


def first_model(stage: Stage) -> None:
    """Control of the other model first, then the first one comes back."""
    stage.control()
    stage.extra_load.__exit__(None, None, None)
    stage.server.kill()
    stage.server.start(model_name="sim")


def post(path: str) -> Do:
    def send(stage: Stage) -> None:
        url = stage.server.base_url + path
        httpx.post(url, timeout=SERVER_TIMEOUT_S, trust_env=False).raise_for_status()

    return send


def frozen_while_running(stage: Stage) -> float:
    """The page stands still at a moment at which it shows running requests."""

    def frozen() -> bool:
        stage.server.misbehave("ok")
        stage.server.misbehave("stale")
        time.sleep(0.3)
        return bool(stage.daemon.instance()["running"])

    eventually(frozen, stage.daemon.describe)
    return time.monotonic()


def narrow(stage: Stage) -> None:
    """Promises that need more than the lowest clock."""
    assert stage.daemon.put(SLO, NARROW).status_code == 200
    eventually(lambda: (stage.held_mhz or 0) > FLOOR_MHZ, stage.daemon.describe)


def generous(stage: Stage) -> None:
    assert stage.daemon.put(SLO, GENEROUS).status_code == 200


def bad_page(name: str, cause: str, told: str, mode: str, quick: bool = True, **settings: Any) -> Scenario:
    """A page that says by itself that it cannot be trusted."""
    return Scenario(
        f"/metrics {name}",
        page(mode, **settings),
        FAULT_S,
        grows("kvwatt_telemetry_errors_total", cause=cause),
        f"telemetry: {cause}: {told}",
        well,
        quick=quick,
    )


PAGES = (
    bad_page("truncated", "truncated", "", "truncated"),
    bad_page("garbage", "truncated", "", "garbage", size_bytes=50_000),
    bad_page("empty", "not_vllm", "the page is empty", "empty"),
    bad_page("of 10 MB", "too_large", "", "huge", size_bytes=10 << 20),
    bad_page("with a series renamed", "missing_series", "", "renamed"),
    bad_page("with a series missing", "missing_series", "", "missing", quick=False, names=[RUNNING]),
    bad_page("all NaN", "bad_value", "", "nan"),
    bad_page("with one NaN", "bad_value", "", "nan", names=[RUNNING]),
    bad_page("with labels missing", "missing_label", "", "missing_labels"),
    bad_page("of several engines", "ambiguous_engine", "", "two_engines"),
    bad_page("answered HTTP 500", "http_status", "", "500", quick=False),
    Scenario(
        "/metrics slow",
        page("slow", delay_s=10.0),
        STALE_S,
        grows("kvwatt_telemetry_errors_total", cause="timeout"),
        "telemetry: timeout: ",
        well,
    ),
    Scenario(
        "/metrics stale",
        frozen_while_running,
        STANDSTILL_S,
        becomes(1.0, "kvwatt_regime", regime="failsafe"),
        "stands still",
        well,
    ),
    Scenario(
        "/metrics counters reset",
        page("ok", reset_counters=True),
        None,
        becomes(1.0, "kvwatt_telemetry_fresh"),
        "counters went back",
        generous,
        prepare=narrow,
        above_floor=True,
    ),
)

ENGINE = (
    Scenario(
        "vLLM killed",
        kill,
        FAULT_S,
        grows("kvwatt_telemetry_errors_total", cause="unreachable"),
        "telemetry: unreachable: ",
        start,
    ),
    Scenario(
        "vLLM hung",
        server_signal(signal.SIGSTOP),
        STALE_S,
        grows("kvwatt_telemetry_errors_total", cause="timeout"),
        "telemetry: timeout: ",
        server_signal(signal.SIGCONT),
    ),
    Scenario(
        "vLLM restarts with another model",
        other_model,
        FAULT_S,
        grows("kvwatt_telemetry_errors_total", cause="unreachable"),
        "served model changed from 'sim' to 'another'",
        first_model,
        quick=False,
        stays=False,
    ),
    Scenario(
        "vLLM asleep",
        post("/sleep?level=1&mode=abort"),
        FAULT_S,
        grows("kvwatt_decisions_total", binding="none"),
        "the engine sleeps",
        post("/wake_up"),
    ),
    Scenario(
        "vLLM paused with requests inside",
        post("/pause?mode=keep"),
        STANDSTILL_S,
        becomes(1.0, "kvwatt_regime", regime="failsafe"),
        "stands still",
        post("/resume"),
        quick=False,
    ),
)

SCENARIOS = (*ENGINE, *PAGES)
