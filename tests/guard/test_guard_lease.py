"""Whoever dies, hangs or leaves: the clocks go back to driver default."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from guard_stage import PATIENCE_S, UUIDS, GuardStage, eventually

from kvwatt_sim.nvml.said import Fault
from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import ClockState, Code, GuardError, Role

SET = "nvmlDeviceSetGpuLockedClocks"
RESET = "nvmlDeviceResetGpuLockedClocks"
DEFAULT = [None, None, None, None]
Controller = Callable[..., subprocess.Popen[str]]


async def test_kill_of_the_controller(stage: GuardStage, controller: Controller) -> None:
    """A controller killed by SIGKILL leaves every GPU it touched at default; others' locks stay."""
    await stage.start()
    stage.gpus.request_lock(2, (600, 600))
    process = controller()
    process.kill()
    await eventually(lambda: stage.locks()[:2] == [None, None], "both GPUs at default")
    assert stage.locks()[2] == (600, 600)
    assert {call.gpu for call in stage.resets()} == {0, 1}


async def test_stop_of_the_controller(stage: GuardStage, controller: Controller) -> None:
    """A controller stopped by SIGSTOP loses its lease: its clocks are reset though it still is connected."""
    await stage.start(lease_s=0.6)
    process = controller()
    os.kill(process.pid, signal.SIGSTOP)
    await eventually(lambda: stage.locks() == DEFAULT, "clocks at default")
    assert process.poll() is None


async def test_renewal_keeps_the_clocks(stage: GuardStage, controller: Controller) -> None:
    """A renewed lease never ends: several lease times later nothing has been reset."""
    await stage.start(lease_s=1.0)
    controller()
    await asyncio.sleep(2.2)
    assert stage.locks() == [(300, 1200), (300, 1200), None, None]
    assert not stage.resets()


async def test_expired_controller_learns_of_it(stage: GuardStage) -> None:
    """After its lease ended a controller is told at the next renewal, and may set anew."""
    await stage.start(lease_s=1.5)
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    await client.set_clocks(UUIDS[:1], 300, 1200)
    await eventually(lambda: stage.locks() == DEFAULT, "clocks at default")
    with pytest.raises(GuardError) as expired:
        await client.renew()
    assert expired.value.code == Code.LEASE_EXPIRED
    assert (await client.status()).lease_expirations == 1
    await client.set_clocks(UUIDS[:1], 300, 900)
    await client.renew()
    assert stage.locks()[0] == (300, 900)
    await client.close()


async def test_disconnect(client: GuardClient, stage: GuardStage) -> None:
    """Closing the connection resets what was set over it."""
    await client.set_clocks(UUIDS[:2], 300, 1200)
    await client.close()
    await eventually(lambda: stage.locks() == DEFAULT, "clocks at default")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signal_to_the_guard(client: GuardClient, stage: GuardStage, number: signal.Signals) -> None:
    """A guard told to end resets what it set, leaves other locks, and ends well with an empty record."""
    guard = stage.guard
    stage.gpus.request_lock(2, (600, 600))
    await client.set_clocks(UUIDS[:2], 300, 1200)
    guard.send_signal(number)
    assert await asyncio.to_thread(guard.wait, 90) == 0
    assert stage.locks() == [None, None, (600, 600), None]
    assert json.loads(stage.state_file.read_text())["gpus"] == []
    assert not stage.socket.exists()


async def test_kill_of_the_guard(client: GuardClient, stage: GuardStage) -> None:
    """A killed guard leaves its locks and a record; the next one undoes exactly those before it serves."""
    stage.gpus.request_lock(2, (600, 600))
    await client.set_clocks(UUIDS[:2], 300, 1200)
    stage.guard.kill()
    await asyncio.to_thread(stage.guard.wait, 90)
    assert stage.locks() == [(300, 1200), (300, 1200), (600, 600), None]
    await stage.start()
    assert stage.locks() == [None, None, (600, 600), None]
    assert {call.gpu for call in stage.resets()} == {0, 1}


async def test_reset_recorded(client: GuardClient, stage: GuardStage) -> None:
    """`--reset-recorded`, which systemd runs after a stop, undoes what a killed guard left and ends."""
    stage.gpus.request_lock(2, (600, 600))
    await client.set_clocks(UUIDS[:2], 300, 1200)
    stage.guard.kill()
    await asyncio.to_thread(stage.guard.wait, 90)
    done = await asyncio.to_thread(stage.run, "--reset-recorded")
    assert done.returncode == 0, done.stderr
    assert stage.locks() == [None, None, (600, 600), None]
    again = await asyncio.to_thread(stage.run, "--reset-recorded")
    assert again.returncode == 0
    assert len(stage.resets()) == 2


async def test_reset_recorded_that_fails(client: GuardClient, stage: GuardStage) -> None:
    """A recorded GPU that cannot be reset stays recorded and is named; the exit status tells."""
    await client.set_clocks(UUIDS[:2], 300, 1200)
    stage.guard.kill()
    await asyncio.to_thread(stage.guard.wait, 90)
    stage.gpus.inject(0, Fault(call=RESET, error="UNKNOWN"))
    done = await asyncio.to_thread(stage.run, "--reset-recorded")
    assert done.returncode == 1
    assert UUIDS[0] in done.stderr
    assert stage.locks()[:2] == [(300, 1200), None]
    assert json.loads(stage.state_file.read_text())["gpus"] == [UUIDS[0]]


@pytest.mark.usefixtures("hang")
async def test_record_precedes_the_set(client: GuardClient, stage: GuardStage) -> None:
    """While a set is on its way to the driver its GPUs are already on record."""
    stage.gpus.inject(0, Fault(call=SET, hang_s=60.0, count=1))
    pending = asyncio.ensure_future(client.set_clocks(UUIDS[:2], 300, 1200))
    record = stage.state_file
    await eventually(lambda: record.exists() and UUIDS[0] in record.read_text(), "GPU 0 is recorded")
    assert all(call.gpu != 0 for call in stage.sets())
    with pytest.raises(GuardError):
        await pending
    stage.guard.kill()
    await asyncio.to_thread(stage.guard.wait, 90)
    assert UUIDS[0] in json.loads(stage.state_file.read_text())["gpus"]


async def test_no_record_no_set(stage: GuardStage) -> None:
    """When the record cannot be written no clock is set."""
    await stage.start()
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    stage.state_file.unlink(missing_ok=True)
    stage.state_file.mkdir()  # a rename over a directory fails, also for root
    with pytest.raises(GuardError) as refused:
        await client.set_clocks(UUIDS[:1], 300, 1200)
    assert refused.value.code == Code.STATE_FILE
    assert stage.gpus.setter_log() == []
    stage.state_file.rmdir()
    await client.set_clocks(UUIDS[:1], 300, 1200)
    assert stage.locks()[0] == (300, 1200)
    await client.close()


async def test_unreadable_record(stage: GuardStage) -> None:
    """A record that makes no sense counts as one of every allowed GPU."""
    stage.gpus.request_lock(1, (600, 600))
    stage.state_file.write_text('{"gpus": 5')
    await stage.start()
    assert stage.locks() == DEFAULT


async def test_record_of_another_boot(stage: GuardStage) -> None:
    """A record from before the last boot is void: the boot has dropped our locks, this one is another's."""
    stage.gpus.request_lock(1, (600, 600))
    stage.state_file.write_text(json.dumps({"version": 1, "boot_id": "earlier", "gpus": [UUIDS[1]]}))
    await stage.start()
    assert stage.locks()[1] == (600, 600)


async def test_hung_gpu_does_not_hold_up_the_lease(stage: GuardStage, controller: Controller) -> None:
    """With a call hanging on one GPU, the end of the lease resets the others."""
    await stage.start(lease_s=0.8)
    process = controller(UUIDS[0], UUIDS[1], UUIDS[2])
    stage.gpus.inject(0, Fault(call=RESET, hang_s=60.0))
    os.kill(process.pid, signal.SIGSTOP)
    await eventually(lambda: stage.locks()[1:3] == [None, None], "GPUs 1 and 2 at default")
    stage.gpus.clear_faults(0)
    await eventually(lambda: stage.locks() == DEFAULT, "GPU 0 follows when its driver answers again")


@pytest.mark.usefixtures("hang")
async def test_hung_set_then_kill(client: GuardClient, stage: GuardStage) -> None:
    """A controller that leaves while its set hangs: the set is undone when it comes back."""
    await client.set_clocks(UUIDS[1:2], 300, 900)
    stage.gpus.inject(0, Fault(call=SET, hang_s=60.0, count=1))
    pending = asyncio.ensure_future(client.set_clocks(UUIDS[:1], 300, 1200))
    watcher = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await watcher.connect(Role.STATUS)
    async with asyncio.timeout(PATIENCE_S):
        while (await watcher.status()).gpus[0].target_mhz is None:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.02)
    await watcher.close()
    pending.cancel()
    await client.close()
    await eventually(lambda: stage.locks()[1] is None, "GPU 1 at default")
    stage.gpus.clear_faults(0)
    await eventually(lambda: len(stage.sets()) == 2, "the hung set took effect")
    await eventually(lambda: stage.resets()[-1].gpu == 0 and stage.locks() == DEFAULT, "and was undone")


async def test_gpu_lost_and_back(client: GuardClient, stage: GuardStage) -> None:
    """A GPU that is lost when its lease ends is reset once it is back, without a restart."""
    await client.set_clocks(UUIDS[:2], 300, 1200)
    stage.gpus.inject(0, Fault(call="*", error="GPU_IS_LOST"))
    await client.close()
    await eventually(lambda: stage.locks()[1] is None, "GPU 1 at default")
    watcher = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await watcher.connect(Role.STATUS)
    assert (await watcher.status()).gpus[0].state is ClockState.RESETTING
    stage.gpus.clear_faults(0)
    await eventually(lambda: stage.locks() == DEFAULT, "GPU 0 at default")
    await watcher.close()


@pytest.mark.usefixtures("hang")
async def test_termination_with_a_hung_gpu(client: GuardClient, stage: GuardStage) -> None:
    """A guard told to end with a hung GPU resets the others, names the hung one, and keeps it on record."""
    await client.set_clocks(UUIDS[:2], 300, 1200)
    stage.gpus.inject(0, Fault(call=RESET, hang_s=60.0))
    stage.guard.terminate()
    assert await asyncio.to_thread(stage.guard.wait, 90) == 1
    assert stage.locks()[:2] == [(300, 1200), None]
    assert json.loads(stage.state_file.read_text())["gpus"] == [UUIDS[0]]
