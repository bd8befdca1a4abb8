"""The guard as a service: readiness and watchdog, one per machine, as a child of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guard_stage import PATIENCE_S, UUIDS, GuardStage, eventually

from kvwatt_sim.nvml.said import Fault
from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import GuardError, Role
from kvwattd.guard.spawn import spawn_guard


def heard(channel: socket.socket, wanted: str) -> bool:
    """Whether systemd's socket gets this line before patience ends."""
    channel.settimeout(1.0)
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            if wanted in channel.recv(4096).decode().splitlines():
                return True
        except TimeoutError:
            continue
    return False


async def test_notifies_systemd(stage: GuardStage, tmp_path: Path) -> None:
    """The guard says READY when it serves and then feeds the watchdog."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        stage.launch(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
        assert await asyncio.to_thread(heard, systemd, "READY=1")
        assert await asyncio.to_thread(heard, systemd, "WATCHDOG=1")
        assert await asyncio.to_thread(heard, systemd, "WATCHDOG=1")
        stage.guard.terminate()
        assert await asyncio.to_thread(heard, systemd, "STOPPING=1")


@pytest.mark.usefixtures("hang")
async def test_watchdog_survives_a_hung_gpu(stage: GuardStage, tmp_path: Path) -> None:
    """A hung NVML call does not stop the watchdog: a restart would not unhang the driver."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        await stage.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
        client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
        await client.connect()
        stage.gpus.inject(0, Fault(call="*", hang_s=60.0))
        with pytest.raises(GuardError):
            await client.set_clocks(UUIDS[:1], 300, 900)
        systemd.setblocking(False)
        while True:
            try:
                systemd.recv(4096)
            except BlockingIOError:
                break
        assert await asyncio.to_thread(heard, systemd, "WATCHDOG=1")
        await client.close()


async def test_second_guard(stage: GuardStage, tmp_path: Path) -> None:
    """A second guard on the same record, GPU or socket refuses to start and says why."""
    await stage.start()
    same_record = await asyncio.to_thread(stage.run)
    assert same_record.returncode == 2
    assert "another guard is running" in same_record.stderr
    other = ["--state-file", str(tmp_path / "other.json")]
    same_gpu = await asyncio.to_thread(stage.run, *other, "--socket", str(tmp_path / "other.sock"))
    assert same_gpu.returncode == 2
    assert f"GPU {UUIDS[0]}: another guard controls it (pid {stage.guard.pid}" in same_gpu.stderr
    same_socket = await asyncio.to_thread(stage.run, *other, "--lock-dir", str(tmp_path / "locks"))
    assert same_socket.returncode == 2
    assert "another guard answers" in same_socket.stderr
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    await client.close()


async def test_stale_socket(stage: GuardStage) -> None:
    """The socket a killed guard left behind is replaced."""
    (await stage.start()).kill()
    await asyncio.to_thread(stage.guard.wait, 90)
    assert stage.socket.exists()
    await stage.start()


async def test_bad_configuration(stage: GuardStage) -> None:
    """A guard with a bad value does not start and names it."""
    done = await asyncio.to_thread(stage.run, "--min-mhz", "5000")
    assert done.returncode == 2
    assert "max_mhz = 2400: expected" in done.stderr


@pytest.mark.parametrize("text", ["gpus = [", "leese_s = 1", 'gpus = ["0"]'])
async def test_recorded_clocks_are_undone_whatever_the_configuration(
    stage: GuardStage, controller: Callable[..., subprocess.Popen[str]], text: str
) -> None:
    """After a kill, `--reset-recorded` undoes the record though guard.toml is broken; so does a start."""
    config = stage.folder / "guard.toml"
    config.write_text("")
    await stage.start("--config", str(config))
    for option, status in (("--reset-recorded", 0), ("--max-mhz=2400", 2)):
        holder = await asyncio.to_thread(controller)
        stage.guard.kill()
        await asyncio.to_thread(stage.guard.wait, 90)
        holder.kill()
        assert stage.locks()[:2] == [(300, 1200)] * 2
        config.write_text(text)
        arguments = ["--config", str(config), "--state-file", str(stage.state_file), option]
        done = await asyncio.to_thread(stage.run_bare, *arguments)
        assert (done.returncode, stage.locks()[:2]) == (status, [None, None]), done.stderr
        assert "guard.toml" in done.stderr or "gpus =" in done.stderr
        config.write_text("")
        await stage.start("--config", str(config))


@pytest.mark.usefixtures("hang")
async def test_a_hung_shutdown_does_not_hold_the_end_up(stage: GuardStage) -> None:
    """The clocks are reset and the process ends though nvmlShutdown never comes back."""
    await stage.start()
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    await client.set_clocks(UUIDS[:1], 300, 900)
    stage.gpus.inject(0, Fault("nvmlShutdown", hang_s=120.0))
    stage.guard.terminate()
    assert await asyncio.to_thread(stage.guard.wait, 90) == 0
    assert stage.locks() == [None] * 4
    await client.close()


@pytest.mark.usefixtures("hang")
async def test_an_init_that_hangs(stage: GuardStage) -> None:
    """While nvmlInit hangs the guard starts, answers and refuses sets; afterwards it sets."""
    stage.gpus.inject(0, Fault("nvmlInit", hang_s=300.0))
    await stage.start()
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    with pytest.raises(GuardError, match=UUIDS[0]):
        await client.set_clocks(UUIDS[:1], 300, 900)
    stage.gpus.clear_faults(0)
    async with asyncio.timeout(PATIENCE_S):
        while stage.locks()[0] is None:
            with contextlib.suppress(GuardError):
                await client.set_clocks(UUIDS[:1], 300, 900)
            await asyncio.sleep(0.05)
    assert stage.locks()[0] == (300, 900)
    await client.close()


async def test_no_driver(stage: GuardStage) -> None:
    """Without an NVML library the guard starts and answers every set with the reason."""
    stage.environment["LD_LIBRARY_PATH"] = "/nonexistent"
    await stage.start()
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    with pytest.raises(GuardError, match="NVML Shared Library Not Found"):
        await client.set_clocks(UUIDS[:1], 300, 900)
    await client.close()


async def test_spawned(stage: GuardStage) -> None:
    """A daemon can start its own guard, set clocks over it, and have them reset by stopping it."""
    stage.socket = stage.folder / "new" / "guard.sock"
    guard = await spawn_guard(stage.socket, stage.state_file, UUIDS, env=stage.environment)
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    await client.set_clocks(UUIDS[:2], 300, 1200)
    await client.close()
    await eventually(lambda: stage.locks() == [None] * 4, "clocks at default")
    assert guard.running
    assert await guard.stop() == 0
    assert not guard.running


async def test_spawned_for_its_parent_only(stage: GuardStage) -> None:
    """A guard started as a child is controlled by its parent alone."""
    guard = await spawn_guard(stage.socket, stage.state_file, UUIDS, env=stage.environment)
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from kvwattd.guard.client import GuardClient\n"
        "asyncio.run(GuardClient(Path(sys.argv[1]), 5.0).connect())\n"
    )
    command = [sys.executable, "-c", code, str(stage.socket)]
    stranger = await asyncio.to_thread(
        subprocess.run, command, stderr=subprocess.PIPE, text=True, check=False
    )
    assert "belongs to pid" in stranger.stderr
    await guard.stop()


async def test_spawn_that_fails(stage: GuardStage) -> None:
    """A guard that cannot start is reported, not waited for."""
    with pytest.raises(GuardError, match="ended at once"):
        await spawn_guard(stage.socket, stage.state_file, ["0"], env=stage.environment)


PARENT = """
import asyncio, sys
from pathlib import Path
from kvwattd.guard.client import GuardClient
from kvwattd.guard.spawn import spawn_guard

async def main():
    socket, state, *uuids = sys.argv[1:]
    guard = await spawn_guard(Path(socket), Path(state), uuids)
    client = GuardClient(Path(socket), timeout_s=60.0)
    await client.connect()
    await client.set_clocks(uuids[:2], 300, 1200)
    print(guard.pid, flush=True)
    while True:
        await client.renew()
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


def running(pid: int) -> bool:
    """False once it is gone or a zombie that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def parent(stage: GuardStage) -> Iterator[subprocess.Popen[str]]:
    """A daemon that has started a guard and set clocks over it."""
    arguments = [sys.executable, "-c", PARENT, str(stage.socket), str(stage.state_file), *UUIDS]
    process = subprocess.Popen(arguments, env=stage.environment, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate(timeout=180)


async def test_killed_parent(parent: subprocess.Popen[str], stage: GuardStage) -> None:
    """A guard whose daemon is killed resets the clocks, and then ends by itself."""
    assert parent.stdout is not None
    guard_pid = int(parent.stdout.readline())
    assert stage.locks()[:2] == [(300, 1200)] * 2
    parent.send_signal(signal.SIGKILL)
    await eventually(lambda: stage.locks() == [None] * 4, "clocks at default")
    await eventually(lambda: not running(guard_pid), "the guard ends")


async def test_status_view(client: GuardClient, stage: GuardStage) -> None:
    """Status tells who controls, for how long, and what is set."""
    await client.set_clocks(UUIDS[:1], 300, 1200)
    reader = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await reader.connect(Role.STATUS)
    status = await reader.status()
    assert status.controller_pid == os.getpid()
    assert status.lease_remaining_s is not None
    assert 0 <= status.lease_remaining_s <= status.lease_s
    assert (status.gpus[0].floor_mhz, status.gpus[0].target_mhz) == (300, 1200)
    assert status.gpus[1].target_mhz is None
    await reader.close()
