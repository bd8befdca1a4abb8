"""vllm@NAME.service and the polkit rule under real systemd, D-Bus and polkit, from the daemon's sandbox."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, eventually
from test_real_systemd import INSTALL, REPOSITORY, unavailable
from test_units import needs_systemd, run

SYSTEM_UNITS = Path("/lib/systemd/system")
BUS_UNITS = ("dbus.service", "dbus.socket", "polkit.service")
RULE = REPOSITORY / "systemd" / "50-kvwatt.rules"
UNIT = REPOSITORY / "systemd" / "vllm@.service"
RULES = "/etc/polkit-1/rules.d/50-kvwatt.rules"
PROBE = Path(__file__).with_name("vllm_probe.py")
PROGRAM = """#!/bin/sh
case $2 in
    broken) echo "no such model" >&2; exit 3 ;;
    deaf) trap '' TERM ;;
esac
sleep 1000 & wait
[ "$2" != deaf ] || while :; do sleep 1; done
"""


def bus_missing() -> str | None:
    if (why := unavailable()) is not None:
        return why
    missing = [name for name in BUS_UNITS if not (SYSTEM_UNITS / name).exists()]
    return f"not installed: {', '.join(missing)}" if missing else None


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """kvwatt installed, a bus, polkit with the shipped rule, and four instances that are not running."""
    if (why := bus_missing()) is not None:
        pytest.skip(why)
    units = [(name, (SYSTEM_UNITS / name).read_text()) for name in BUS_UNITS]
    with Machine() as booted:
        assert booted.run(*INSTALL).returncode == 0
        for name, text in [*units, (UNIT.name, UNIT.read_text()), ("probe.service", probe_unit())]:
            booted.inside(f"/etc/systemd/system/{name}").write_text(text)
        booted.inside("/etc/systemd/system/vllm@deaf.service.d").mkdir()
        drop_in = booted.inside("/etc/systemd/system/vllm@deaf.service.d/kill.conf")
        drop_in.write_text("[Service]\nTimeoutStopSec=500ms\n")
        booted.inside(RULES).parent.mkdir(parents=True, exist_ok=True)
        booted.inside(RULES).write_bytes(RULE.read_bytes())
        booted.run("useradd", "--system", "vllm")
        booted.inside("/opt/vllm/bin").mkdir(parents=True)
        program = booted.inside("/opt/vllm/bin/vllm")
        program.write_text(PROGRAM)
        program.chmod(0o755)
        booted.inside("/etc/vllm").mkdir()
        for name in ("a", "b-2", "broken", "deaf"):
            booted.inside(f"/etc/vllm/{name}.env").write_text(f"VLLM_ARGS={name} --port 8000\n")
        booted.systemctl("daemon-reload")
        booted.systemctl("start", "dbus.socket", "dbus.service", "polkit.service")
        yield booted


def probe_unit() -> str:
    """kvwatt.service, with the probe for a program: the same user, the same sandbox."""
    lines = []
    for line in (REPOSITORY / "systemd" / "kvwatt.service").read_text().splitlines():
        key = line.partition("=")[0]
        if key == "ExecStart":
            line = f"ExecStart=/opt/kvwatt/bin/python {PROBE} /run/orders"
        elif key == "Type":
            line = "Type=oneshot"
        if key not in (
            "WatchdogSec",
            "WatchdogSignal",
            "NotifyAccess",
            "Restart",
            "RestartSec",
            "ExecReload",
        ):
            lines.append(line)
        if line == "[Service]":
            lines += ["ProtectHome=no"]
            lines += ["StandardOutput=truncate:/run/answers", "StandardError=append:/run/probe.log"]
    text = "\n".join(lines).replace("ProtectHome=yes", "")
    return text.replace("Wants=kvwatt-guard.service", "")


def ask(machine: Machine, *orders: list[str]) -> list[Any]:
    machine.inside("/run/orders").write_text(json.dumps(orders))
    done = machine.run("systemctl", "start", "probe.service")
    log = machine.inside("/run/probe.log")
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "") + machine.console()
    answers: list[Any] = json.loads(machine.inside("/run/answers").read_text())
    return answers


def test_from_start_to_stop(machine: Machine) -> None:
    """As the daemon's user, in its sandbox: started twice it is one unit, adopted, stopped."""
    answers = ask(
        machine, ["states"], ["start", "a"], ["start", "a"], ["wait", "a", "running"], ["processes"]
    )
    states, first, second, running, processes = answers
    assert set(states.values()) == {"stopped"}
    assert (first, second, running) == ("ok", "ok", ["running", ""])
    assert len(processes["a"]) == 2 and not processes["b-2"], "the program and its worker"
    assert machine.property("vllm@a.service", "User") == "vllm"
    found, started, stopped, again, gone = ask(
        machine, ["states"], ["start", "b-2"], ["stop", "a"], ["stop", "a"], ["wait", "a", "stopped"]
    )
    assert found["a"] == "running", "another kvwatt finds it"
    assert (started, stopped, again, gone) == ("ok", "ok", "ok", ["stopped", ""])
    assert machine.property("vllm@b-2.service", "ActiveState") == "active"
    machine.systemctl("stop", "vllm@b-2.service")


def test_one_that_fails(machine: Machine) -> None:
    """FAILED, whether systemd tries it again or not; a stop ends the trying and resets it."""
    _, (state, reason) = ask(machine, ["start", "broken"], ["wait", "broken", "failed"])
    assert state == "failed" and "try again" in reason
    assert ask(machine, ["stop", "broken"], ["wait", "broken", "stopped"])[1][0] == "stopped"
    folder = machine.inside("/etc/systemd/system/vllm@broken.service.d")
    folder.mkdir()
    (folder / "once.conf").write_text("[Service]\nRestart=no\n")
    machine.systemctl("daemon-reload")
    _, (state, reason), stopped, after = ask(
        machine,
        ["start", "broken"],
        ["wait", "broken", "failed"],
        ["stop", "broken"],
        ["wait", "broken", "stopped"],
    )
    assert state == "failed" and "exit status 3" in reason
    assert stopped == "ok" and after == ["stopped", ""]


def test_deaf_to_sigterm(machine: Machine) -> None:
    """systemd kills it when TimeoutStopSec is over, and the failure is told."""
    _, _, _, (state, reason) = ask(
        machine, ["start", "deaf"], ["wait", "deaf", "running"], ["stop", "deaf"], ["wait", "deaf", "failed"]
    )
    assert state == "failed" and "timeout" in reason
    assert ask(machine, ["stop", "deaf"], ["wait", "deaf", "stopped"])[1] == ["stopped", ""]


def test_nothing_else_is_permitted(machine: Machine) -> None:
    """Other units, other verbs, reloads and properties are refused to the daemon's user."""
    tries = [
        ["systemctl", "--no-ask-password", "start", "kvwatt-guard.service"],
        ["systemctl", "--no-ask-password", "stop", "dbus.service"],
        ["systemctl", "--no-ask-password", "daemon-reload"],
        ["systemctl", "--no-ask-password", "enable", "vllm@a.service"],
        ["systemctl", "--no-ask-password", "restart", "vllm@a.service"],
        ["systemctl", "--no-ask-password", "kill", "vllm@b-2.service"],
        ["systemctl", "--no-ask-password", "set-property", "vllm@a.service", "CPUWeight=1"],
        ["systemctl", "--no-ask-password", "set-environment", "LD_PRELOAD=/tmp/x"],
        ["systemctl", "--no-ask-password", "isolate", "rescue.target"],
        ["systemd-run", "--no-ask-password", "--unit=vllm@x.service", "/bin/true"],
        ["systemctl", "--no-ask-password", "poweroff"],
    ]
    machine.systemctl("start", "vllm@b-2.service")
    statuses = ask(machine, *(["sh", *words] for words in tries))
    assert all(statuses), list(zip(tries, statuses, strict=True))
    assert machine.property("vllm@b-2.service", "ActiveState") == "active"
    machine.systemctl("stop", "vllm@b-2.service")
    other = machine.run("setpriv", "--reuid=vllm", "--clear-groups", "systemctl", "start", "vllm@a.service")
    assert other.returncode != 0 and machine.property("vllm@a.service", "ActiveState") == "inactive"


def test_without_the_rule(machine: Machine) -> None:
    """Refused with a cause that names it; the states are still seen."""
    machine.inside(RULES).unlink()
    machine.systemctl("restart", "polkit.service")
    try:
        (cause, detail), states = ask(machine, ["start", "a"], ["states"])
        assert cause == "forbidden" and "vllm@a.service" in detail
        assert states["a"] == "stopped"
    finally:
        machine.inside(RULES).write_bytes(RULE.read_bytes())
        machine.systemctl("restart", "polkit.service")


def test_a_unit_that_is_not_described(machine: Machine) -> None:
    """Without its environment file it does not start, and says so."""
    path = machine.inside("/etc/vllm/a.env")
    text = path.read_text()
    path.unlink()
    (cause, _), (state, reason) = ask(machine, ["start", "a"], ["wait", "a", "failed"])
    path.write_text(text)
    assert cause == "failed" and state == "failed" and "resources" in reason
    assert ask(machine, ["stop", "a"], ["wait", "a", "stopped"])[1] == ["stopped", ""]
    eventually(lambda: machine.property("vllm@a.service", "ActiveState") == "inactive", 10, machine.console)


@needs_systemd
def test_verify_and_exposure(tmp_path: Path) -> None:
    """systemd finds nothing to say; exposure is at most 2 (CUDA compiles, and vLLM serves a network)."""
    program = shutil.which("true") or "/bin/true"
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/vllm/bin/vllm", program))
    assert run("verify", str(path)) == ""
    output = run("security", "--offline=true", "--no-pager", str(path))
    level = re.search(r"Overall exposure level for \S+: (?P<level>[0-9.]+)", output)
    assert level is not None and float(level["level"]) <= 2.0, output


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_rule_case_by_case() -> None:
    """The rule itself, in an interpreter of its language: who, which action, which unit, which verb."""
    cases = [
        (True, "kvwatt", "manage-units", "vllm@a.service", "start"),
        (True, "kvwatt", "manage-units", "vllm@tp2-1.service", "stop"),
        (True, "kvwatt", "manage-units", "vllm@a.service", "reset-failed"),
        (False, "kvwatt", "manage-units", "vllm@a.service", "restart"),
        (False, "kvwatt", "manage-units", "vllm@a.service", "kill"),
        (False, "kvwatt", "manage-units", "vllm@.service", "start"),
        (False, "kvwatt", "manage-units", "vllm@a.service.evil.service", "set-property"),
        (False, "kvwatt", "manage-units", "xvllm@a.service", "start"),
        (False, "kvwatt", "manage-units", "vllm@a.socket", "start"),
        (False, "kvwatt", "manage-units", "vllm@a\n.service", "start"),
        (False, "kvwatt", "manage-units", None, "start"),
        (False, "kvwatt", "manage-units", "vllm@a.service", None),
        (False, "kvwatt", "manage-unit-files", "vllm@a.service", "start"),
        (False, "root", "manage-units", "vllm@a.service", "start"),
    ]
    program = """
let rule; const polkit = {Result: {YES: true, NOT_HANDLED: false}, addRule: (found) => { rule = found; }};
eval(process.argv[1]);
const answers = JSON.parse(process.argv[2]).map(([_, user, action, unit, verb]) => rule(
    {id: "org.freedesktop.systemd1." + action, lookup: (key) => ({unit, verb})[key] ?? undefined}, {user}));
console.log(JSON.stringify(answers));
"""
    done = subprocess.run(
        ["node", "-e", program, RULE.read_text(), json.dumps(cases)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [case[0] for case in cases]
