"""Doctor's checks: silent on a healthy machine, and for each thing that is wrong it says what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_cases import (
    ABSENT_GUARD,
    CASES,
    busy_at,
    gpu_with,
    with_guard,
)
from doctor_facts import (
    GUARD,
    GUARD_GPU,
    HEALTHY,
    STATUS,
)

from kvwattd.doctor.collect import privilege, processes
from kvwattd.doctor.facts import (
    Facts,
    Finding,
    Level,
    PortFact,
    Privilege,
    Process,
)
from kvwattd.doctor.report import as_json, examine, has_problem
from kvwattd.guard.protocol import ClockState


def not_ok(facts: Facts) -> list[Finding]:
    return [finding for finding in examine(facts) if finding.level is not Level.OK]


def test_a_healthy_machine_has_nothing_to_do() -> None:
    """When everything is in place, every finding is fine and none gives advice."""
    findings = examine(HEALTHY)
    assert len(findings) >= 10
    assert {finding.level for finding in findings} == {Level.OK}
    assert not any(finding.advice for finding in findings)


@pytest.mark.parametrize(
    ("facts", "check", "level", "advice"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_is_wrong_is_named_with_what_to_do(facts: Facts, check: str, level: Level, advice: str) -> None:
    """Each thing that is wrong is told under its name, at its level, with something to do."""
    matching = [f for f in not_ok(facts) if f.check == check and f.level is level]
    assert len(matching) == 1, not_ok(facts)
    assert advice in matching[0].advice
    assert has_problem(examine(facts)) == (level is Level.PROBLEM)


@pytest.mark.parametrize("reasons", [0x4, 0x8, 0x20, 0x40, 0x80])
def test_power_and_heat_are_no_other_writer(reasons: int) -> None:
    """A clock held back by power or heat is not blamed on somebody else."""
    assert not_ok(busy_at(1500, reasons=reasons)) == []


def test_idle_clock_is_no_other_writer() -> None:
    """A GPU without work runs low by itself."""
    assert not_ok(busy_at(210, reasons=0x1, utilization=0.0)) == []


def test_clock_held_by_our_guard_is_no_other_writer() -> None:
    """A clock that our own guard holds is not blamed on somebody else."""
    held = replace(STATUS, gpus=(replace(GUARD_GPU, state=ClockState.SET, target_mhz=1500),))
    assert not_ok(busy_at(1500, guard=replace(GUARD, status=held))) == []


def test_our_own_daemon_on_the_port_is_fine() -> None:
    """A port that a kvwatt daemon holds already is no problem."""
    port = PortFact("127.0.0.1", 8484, "Address already in use", ours=True)
    assert not_ok(replace(HEALTHY, port=port)) == []


def test_spawned_guard_needs_no_running_one() -> None:
    """With guard.spawn and root, the absent guard is no problem: it will be started."""
    facts = replace(
        HEALTHY, config=with_guard(spawn=True), guard=ABSENT_GUARD, privilege=Privilege(0, cap_sys_admin=True)
    )
    assert not_ok(facts) == []


def test_json_tells_the_verdict_and_every_finding() -> None:
    """The JSON form holds what the text holds."""
    facts = gpu_with(mig=True)
    document = json.loads(as_json(examine(facts)))
    assert document["ok"] is False
    assert len(document["findings"]) == len(examine(facts))
    assert {"check": "GPU 0", "level": "problem"}.items() <= document["findings"][3].items()


def test_processes_are_read_by_the_kernels_name(tmp_path: Path) -> None:
    """Names come from /proc; what is no process, or has just ended, is left out."""
    for pid, name in ((7, "zeusd"), (8, "python")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
    (tmp_path / "9").mkdir()
    (tmp_path / "sys").mkdir()
    assert set(processes(tmp_path)) == {Process(7, "zeusd"), Process(8, "python")}


@pytest.mark.parametrize(("mask", "capable"), [("0000000000200000", True), ("00000000a80425fb", False)])
def test_capability_is_read_from_the_effective_set(tmp_path: Path, mask: str, capable: bool) -> None:
    """CAP_SYS_ADMIN is bit 21 of the effective set; a plain container lacks it although it is root."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask}\n")
    assert privilege(tmp_path).cap_sys_admin is capable
