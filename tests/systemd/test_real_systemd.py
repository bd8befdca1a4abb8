"""The units under a real systemd: installed, started, killed, stopped, misconfigured, removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, eventually

from kvwatt_sim import cards
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import demo_uuid
from kvwattd.guard.client import GuardClient

REPOSITORY = Path(__file__).parents[2]
UUIDS = [demo_uuid(0), demo_uuid(1)]
INSTALL = ("/bin/sh", str(REPOSITORY / "deploy" / "install.sh"), "--without-program")
GUARD, DAEMON = "kvwatt-guard.service", "kvwatt.service"
SOCKET = "/run/kvwatt/guard.sock"
# The units see nothing of these: an editable installation from there cannot run in them.
HIDDEN = (Path("/tmp"), Path("/var/tmp"), Path("/root"))
# The bar: clocks at default this long after the guard is killed, with a supervisor.
KILLED_BOUND_S = 3.0
WATCHDOG_S = 3.0

# Where the simulated driver is; and the interpreter of these tests may lie in a home.
DROP_IN = """[Service]
Environment="LD_LIBRARY_PATH={libraries}" "KVWATT_SIM_STATE={state}"
ProtectHome=no
StandardError=append:/run/{name}.log
"""
CONFIGURATION = """
[daemon]
mode = "active"
[api]
port = 0
[slo.tbt]
limit_s = 0.2
[[instance]]
name = "sim"
url = "http://127.0.0.1:9"
gpus = ["{gpu}"]
"""


def unavailable() -> str | None:
    """Why no machine can be had here; None where it can."""
    if os.geteuid() != 0:
        return "root is needed to boot a systemd of its own"
    for tool in ("unshare", "nsenter", "systemctl"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if any(REPOSITORY.is_relative_to(folder) for folder in HIDDEN):
        return f"the units do not see a checkout in {REPOSITORY} (PrivateTmp, ProtectHome)"
    try:
        with Machine():
            return None
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"systemd does not boot in namespaces here: {error}"


@pytest.fixture(scope="module")
def gpus() -> Iterator[SimGpus]:
    """Two GPUs that only root may set, where both sides of the namespaces see them."""
    if (why := unavailable()) is not None:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        folder.chmod(0o755)
        libs = build()
        shutil.copytree(libs.dir, folder / "libs", symlinks=True)
        specs = [cards.load("l20", 1).gpu_spec(uuid) for uuid in UUIDS]
        with SimGpus.create(folder / "gpus", specs, permission="root", mode=0o666) as made:
            yield made


@pytest.fixture(scope="module")
def machine(gpus: SimGpus) -> Iterator[Machine]:
    """kvwatt installed by the script and configured for the simulated GPUs; nothing runs yet."""
    with Machine() as booted:
        done = booted.run(*INSTALL)
        assert done.returncode == 0, done.stderr
        libraries = gpus.path.parent / "libs"
        for name in (GUARD, DAEMON):
            folder = booted.inside(f"/etc/systemd/system/{name}.d")
            folder.mkdir()
            text = DROP_IN.format(libraries=libraries, state=gpus.path, name=name)
            (folder / "sim.conf").write_text(text)
        configure(booted, f'gpus = ["{UUIDS[0]}", "{UUIDS[1]}"]\n')
        (booted.inside("/etc/kvwatt/kvwatt.toml")).write_text(CONFIGURATION.format(gpu=UUIDS[0]))
        booted.systemctl("daemon-reload")
        yield booted


def configure(machine: Machine, gpus_line: str) -> None:
    """The shipped guard.toml, with another list of GPUs."""
    lines = (REPOSITORY / "systemd" / "guard.toml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("gpus =")]
    machine.inside("/etc/kvwatt/guard.toml").write_text(gpus_line + "".join(kept))


@pytest.fixture
def guard(machine: Machine, gpus: SimGpus) -> Iterator[Machine]:
    """The guard runs; afterwards it is stopped and every clock is at default."""
    machine.systemctl("start", GUARD)
    yield machine
    machine.systemctl("stop", GUARD)
    assert locks(gpus) == [None, None], log(machine)


def locks(gpus: SimGpus) -> list[tuple[int, int] | None]:
    return [gpus.lock_mhz(i) for i in range(gpus.count)]


def log(machine: Machine) -> str:
    paths = [machine.inside(f"/run/{name}.log") for name in (GUARD, DAEMON)]
    return "".join(path.read_text() for path in paths if path.exists()) + machine.console()


async def controlled(machine: Machine, gpus: SimGpus) -> GuardClient:
    """A controller with a clock on both GPUs."""
    client = GuardClient(machine.inside(SOCKET), timeout_s=5.0)
    await client.connect()
    await client.set_clocks(UUIDS, 900, 1200)
    eventually(lambda: locks(gpus) == [(900, 1200)] * 2, 5.0, lambda: "the clocks in force")
    return client


def default_after(machine: Machine, gpus: SimGpus, limit_s: float) -> float:
    return eventually(lambda: locks(gpus) == [None, None], limit_s, lambda: log(machine))


async def test_a_killed_guard(guard: Machine, gpus: SimGpus) -> None:
    """SIGKILL: the stop hook resets within the bound, and another guard serves."""
    client = await controlled(guard, gpus)
    before = guard.property(GUARD, "MainPID")
    guard.systemctl("kill", "--signal=SIGKILL", GUARD)
    default_after(guard, gpus, KILLED_BOUND_S)
    eventually(lambda: guard.property(GUARD, "ActiveState") == "active", 30.0, lambda: log(guard))
    assert guard.property(GUARD, "MainPID") != before
    await client.close()
    await (await controlled(guard, gpus)).close()


async def test_a_stopped_guard_misses_its_watchdog(guard: Machine, gpus: SimGpus) -> None:
    """SIGSTOP: the watchdog kills it, the stop hook resets, another guard serves."""
    client = await controlled(guard, gpus)
    guard.systemctl("kill", "--signal=SIGSTOP", "--kill-whom=main", GUARD)
    default_after(guard, gpus, WATCHDOG_S + KILLED_BOUND_S)
    eventually(lambda: guard.property(GUARD, "ActiveState") == "active", 30.0, lambda: log(guard))
    assert guard.property(GUARD, "NRestarts") != "0"
    await client.close()


async def test_a_killed_guard_with_a_broken_configuration(guard: Machine, gpus: SimGpus) -> None:
    """The stop hook needs no guard.toml; the guard then stays down and says why."""
    client = await controlled(guard, gpus)
    configure(guard, "gpus = [\n")
    guard.systemctl("kill", "--signal=SIGKILL", GUARD)
    default_after(guard, gpus, KILLED_BOUND_S)
    eventually(lambda: guard.property(GUARD, "ActiveState") == "failed", 30.0, lambda: log(guard))
    assert guard.property(GUARD, "ExecMainStatus") == "2"
    assert "guard.toml" in log(guard)
    await client.close()
    configure(guard, f'gpus = ["{UUIDS[0]}", "{UUIDS[1]}"]\n')
    guard.systemctl("reset-failed", GUARD)


async def test_only_our_gpus_are_reset(guard: Machine, gpus: SimGpus) -> None:
    """A lock that somebody else has set stays, whatever becomes of the guard."""
    gpus.request_lock(1, (600, 600))
    client = GuardClient(guard.inside(SOCKET), timeout_s=5.0)
    await client.connect()
    await client.set_clocks(UUIDS[:1], 900, 1200)
    eventually(lambda: gpus.lock_mhz(0) == (900, 1200), 5.0, lambda: log(guard))
    guard.systemctl("kill", "--signal=SIGKILL", GUARD)
    eventually(lambda: gpus.lock_mhz(0) is None, KILLED_BOUND_S, lambda: log(guard))
    assert gpus.lock_mhz(1) == (600, 600)
    await client.close()
    gpus.request_lock(1, None)
    eventually(lambda: gpus.lock_mhz(1) is None, 5.0, lambda: "the lock goes")


async def test_the_daemon_unit(guard: Machine, gpus: SimGpus) -> None:
    """The daemon starts in its sandbox as its own user, is admitted by the guard, and cannot set a clock."""
    done = guard.run("systemctl", "start", DAEMON)
    assert done.returncode == 0, log(guard)
    text = guard.inside(f"/run/{GUARD}.log")
    uid = guard.run("id", "-u", "kvwatt").stdout.strip()
    eventually(lambda: f"(uid {uid}) controls" in text.read_text(), 30.0, lambda: log(guard))
    main = guard.property(DAEMON, "MainPID")
    status = guard.run("cat", f"/proc/{main}/status").stdout
    assert f"Uid:\t{uid}\t{uid}" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    guard.systemctl("kill", "--signal=SIGKILL", DAEMON)
    eventually(lambda: guard.property(DAEMON, "MainPID") not in ("0", main), 30.0, lambda: log(guard))
    guard.systemctl("stop", DAEMON)
    assert not [call for call in gpus.setter_log() if str(call.pid) == main]


async def test_both_killed_and_nobody_there(machine: Machine, gpus: SimGpus) -> None:
    """Killed with no hook to run after it: the next start undoes the record before it answers anybody."""
    machine.systemctl("start", GUARD)
    drop_in = machine.inside(f"/etc/systemd/system/{GUARD}.d/no-hook.conf")
    drop_in.write_text("[Service]\nExecStopPost=\nRestart=no\n")
    machine.systemctl("daemon-reload")
    client = await controlled(machine, gpus)
    machine.systemctl("kill", "--signal=SIGKILL", GUARD)
    eventually(lambda: machine.property(GUARD, "ActiveState") == "failed", 30.0, lambda: log(machine))
    assert locks(gpus) == [(900, 1200)] * 2
    await client.close()
    drop_in.unlink()
    machine.systemctl("daemon-reload")
    machine.systemctl("start", GUARD)  # returns when it is ready
    default_after(machine, gpus, 1.0)
    machine.systemctl("stop", GUARD)


async def test_uninstall_leaves_nothing(gpus: SimGpus) -> None:
    """Installed, run with clocks set, removed: clocks at default, and no file, user or group left."""
    with Machine() as machine:
        before = _traces(machine)
        assert machine.run(*INSTALL).returncode == 0
        folder = machine.inside(f"/etc/systemd/system/{GUARD}.d")
        folder.mkdir()
        libraries = gpus.path.parent / "libs"
        (folder / "sim.conf").write_text(DROP_IN.format(libraries=libraries, state=gpus.path, name=GUARD))
        configure(machine, f'gpus = ["{UUIDS[0]}", "{UUIDS[1]}"]\n')
        machine.systemctl("daemon-reload")
        machine.systemctl("enable", "--now", GUARD)
        assert _traces(machine) != before
        client = await controlled(machine, gpus)
        done = machine.run(*INSTALL, "--uninstall", env=env_for(build(), gpus.path))
        assert done.returncode == 0, done.stderr
        await client.close()
        default_after(machine, gpus, 1.0)
        assert _traces(machine) == before
        assert machine.run("systemctl", "cat", GUARD).returncode != 0


def _traces(machine: Machine) -> str:
    """Everything of kvwatt's on the machine, and the lists of users and groups."""
    find = "find /etc /var/lib /run /usr/lib/sysusers.d /usr/lib/tmpfiles.d -name '*kvwatt*' ! -name '*.log'"
    return machine.run("sh", "-c", f"{find}; cat /etc/passwd /etc/group /etc/shadow").stdout
