"""What an operator does over REST and the command line takes effect, needs the token, and is shown."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from daemon_process import eventually
from fault_stage import CEILING_MHZ, FLOOR_MHZ, GENEROUS, LEASE_BOUND_S, Stage
from host_stalls import lost_s

OVERRIDE = "/api/v1/instances/sim/override"
SLO = "/api/v1/slos/sim"


def test_an_override_holds_its_clock_and_expires(stage: Stage) -> None:
    """A clock by hand is held for its time and no longer; then decisions hold again."""
    assert stage.daemon.put(OVERRIDE, {"clock_mhz": 1800, "duration_s": 300.0}).status_code == 200
    eventually(lambda: stage.held_mhz == 1800, stage.daemon.describe)
    held = stage.daemon.wait_for("override")
    assert held["clock_target_mhz"] == 1800 and 0.0 < held["override"]["left_s"] <= 300.0
    assert stage.daemon.metric("kvwatt_override_active") == 1.0
    assert stage.daemon.put(OVERRIDE, {"clock_mhz": 1800, "duration_s": 2.0}).status_code == 200
    eventually(lambda: stage.held_mhz != 1800, stage.daemon.describe)
    stage.control()
    assert stage.daemon.metric("kvwatt_override_active") == 0.0
    assert "override ended" in stage.daemon.log()


def test_an_override_yields_to_a_fault(stage: Stage) -> None:
    """A clock by hand is not held on a server that cannot be seen."""
    assert stage.daemon.put(OVERRIDE, {"clock_mhz": 1200, "duration_s": 60.0}).status_code == 200
    eventually(lambda: stage.held_mhz == 1200, stage.daemon.describe)
    stage.server.misbehave("500")
    stage.daemon.wait_for("failsafe")
    stage.default_within(LEASE_BOUND_S, time.monotonic())
    stage.server.misbehave("ok")
    stage.daemon.wait_for("override")
    assert stage.daemon.delete(OVERRIDE).status_code == 204
    stage.control()


@pytest.mark.parametrize("clock_mhz", [FLOOR_MHZ - 15, CEILING_MHZ + 15, 1801])
def test_an_override_outside_the_bounds_or_unsupported_is_refused(stage: Stage, clock_mhz: int) -> None:
    """Only a clock that the GPUs support, inside the bounds, may be held by hand."""
    refused = stage.daemon.put(OVERRIDE, {"clock_mhz": clock_mhz, "duration_s": 5.0})
    assert refused.status_code in (409, 422)
    assert str(clock_mhz) in refused.text
    assert stage.daemon.instance()["override"] is None


def test_a_tighter_promise_changes_the_decision_and_back(stage: Stage) -> None:
    """A promise no clock can keep means driver default, with the promise named; the old one lowers again."""
    tight = {"tbt": {"limit_s": 0.001, "quantile": 0.95}}
    assert stage.daemon.put(SLO, tight).status_code == 200
    stage.default_within(LEASE_BOUND_S, time.monotonic())
    told = "no clock keeps every promise (tbt breaks even at the top)"
    eventually(lambda: told in stage.daemon.decisions()[0]["reason"], stage.daemon.describe)
    assert stage.daemon.get(SLO).json()["ttft"] is None
    assert stage.daemon.put(SLO, GENEROUS).status_code == 200
    stage.control()


@pytest.mark.parametrize("token", [None, "not the right token"])
@pytest.mark.parametrize(("path", "body"), [(SLO, GENEROUS), ("/api/v1/mode", {"mode": "off"})])
def test_writes_need_the_token(stage: Stage, path: str, body: object, token: str | None) -> None:
    """Without the token nothing changes."""
    refused = stage.daemon.put(path, body, token)
    assert refused.status_code in (401, 403)
    assert stage.daemon.status()["mode"] == "active"
    assert "not the right token" not in stage.daemon.log() + refused.text


def fresh_energy(stage: Stage, above_j: float) -> tuple[dict[str, Any], float]:
    """The instance just after a new reading of more than that, and the GPU's own account."""
    before_j = stage.daemon.instance()["energy_j"]
    seen: list[dict[str, Any]] = []

    def read_anew() -> bool:
        seen[:] = [stage.daemon.instance()]
        return bool(seen[0]["energy_j"] > max(above_j, before_j))

    eventually(read_anew, stage.daemon.describe)
    return seen[0], stage.gpus.energy_j(0)


def test_power_and_energy_are_shown_and_energy_grows(stage: Stage) -> None:
    """Figures come from the counters of the GPU, and agree with its own account."""
    since_s = time.monotonic()
    first, exact_j = fresh_energy(stage, 0.0)
    later, after_j = fresh_energy(stage, first["energy_j"] + 300.0)
    # A reading may be a second old at either end, at the GPU's highest power.
    late_j = 275.0 * (1.0 + lost_s(since_s))
    assert later["energy_j"] - first["energy_j"] == pytest.approx(after_j - exact_j, abs=late_j)
    assert 30.0 < later["power_w"] < 300.0
    assert stage.daemon.metric("kvwatt_gpu_power_watts") > 30.0
    assert stage.daemon.metric("kvwatt_gpu_energy_joules_total") >= later["energy_j"]
    eventually(lambda: stage.daemon.metric("kvwatt_gpu_clock_held") == 1.0, stage.daemon.describe)


def test_the_past_is_remembered_for_who_comes_later(stage: Stage) -> None:
    """A point a second, whoever looks or not; what it tells is what was shown."""

    def told() -> dict[str, list[float | None]]:
        return stage.daemon.get("/api/v1/instances/sim/history").json()  # type: ignore[no-any-return]

    eventually(lambda: len(told()["unix_s"]) >= 3, stage.daemon.describe)
    past = told()
    assert past["unix_s"] == sorted(past["unix_s"]) and len({len(column) for column in past.values()}) == 1
    for name, low, high in (
        ("clock_actual_mhz", 210.0, 2520.0),
        ("power_w", 30.0, 300.0),
        ("kv_usage", 0.0, 1.0),
    ):
        known = [value for value in past[name] if value is not None]
        assert known and all(low <= value <= high for value in known), (name, known)


def test_the_status_command_prints_what_the_daemon_does(stage: Stage) -> None:
    """`kvwatt status --json` shows regime, clock and figures of the running daemon."""
    command = [sys.executable, "-m", "kvwattd", "status", "--url", stage.daemon.url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    instance = json.loads(done.stdout)["instances"][0]
    assert instance["name"] == "sim" and instance["regime"] == "active"
    assert FLOOR_MHZ <= instance["clock_target_mhz"] <= CEILING_MHZ
    assert instance["power_w"] > 0
