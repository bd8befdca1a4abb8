"""A running guard beside other programs that set clocks, GPUs that do not obey, and reloaded drivers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest
from guard_stage import PATIENCE_S, UUIDS, GuardStage, eventually
from host_stalls import lost_s

from kvwatt_sim.nvml.said import Fault
from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import ClockState, Code, GuardError, GuardGpu

SET = "nvmlDeviceSetGpuLockedClocks"
HOLD_OFF_S = 2.0
OBEYED_S = 2.0  # a switch is given one second, then a quarter of a second to each reading


@pytest.fixture
async def controller_of(stage: GuardStage) -> GuardClient:
    """A controller of a guard that leaves alarmed GPUs alone for two seconds; the GPUs are busy."""
    for index in range(3):
        stage.gpus.publish(index, 0.6, 0.3)
    await stage.start("--hold-off-s", str(HOLD_OFF_S), lease_s=20.0)
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    return client


async def seen(client: GuardClient, index: int, holds: Callable[[GuardGpu], bool], what: str) -> GuardGpu:
    """The GPU once it holds."""
    until_s = time.monotonic() + PATIENCE_S
    while not holds(gpu := (await client.status()).gpus[index]):
        assert time.monotonic() < until_s, f"never happened: {what}: {gpu}"
        await asyncio.sleep(0.05)
    return gpu


async def obeyed(client: GuardClient, stage: GuardStage, target_mhz: int) -> None:
    """Set GPUs 0 and 1, and wait until the guard has seen them run at it for a while."""
    await client.set_clocks(UUIDS[:2], 300, target_mhz)
    await seen(client, 0, lambda gpu: gpu.clock_mhz == target_mhz, "the clock read back")
    since_s = time.monotonic()
    while time.monotonic() - since_s - lost_s(since_s) < OBEYED_S:  # noqa: ASYNC110  # the guard's readings
        await asyncio.sleep(0.1)
    assert stage.locks()[:2] == [(300, target_mhz)] * 2


async def test_yields_to_another_writer(controller_of: GuardClient, stage: GuardStage) -> None:
    """Another program's clock stays, the group goes to default, an alarm says so, and time ends it."""
    client = controller_of
    await obeyed(client, stage, 1200)
    stage.gpus.request_lock(0, (600, 600))
    gpu = await seen(client, 0, lambda gpu: gpu.state is ClockState.YIELDED, "the guard yields")
    assert gpu.alarm is not None
    assert "another program sets its clocks" in gpu.alarm and "600 MHz" in gpu.alarm
    assert "external" in gpu.limited_by
    await eventually(lambda: stage.locks()[1] is None, "the rest of the group at default")
    with pytest.raises(GuardError) as refused:
        await client.set_clocks(UUIDS[:1], 300, 900)
    assert refused.value.code == Code.YIELDED
    await asyncio.sleep(1.5 * HOLD_OFF_S)  # longer than the hold-off: the other's clock is still there
    assert (await client.status()).gpus[0].state is ClockState.YIELDED
    assert stage.locks()[0] == (600, 600)
    assert UUIDS[0] not in json.loads(stage.state_file.read_text())["gpus"]
    stage.gpus.request_lock(0, None)
    await seen(client, 0, lambda gpu: gpu.alarm is None, "the alarm ends")
    await client.set_clocks(UUIDS[:2], 300, 900)
    assert stage.locks()[:2] == [(300, 900)] * 2
    status = await client.status()
    assert (status.yields, status.disobeyed) == (1, 0)
    await client.close()


async def test_another_writers_clock_survives_the_guard(
    controller_of: GuardClient, stage: GuardStage
) -> None:
    """What was left to another program is not reset by a lease that ends or a guard that stops."""
    await obeyed(controller_of, stage, 1200)
    stage.gpus.request_lock(0, (1800, 1800))
    await seen(controller_of, 0, lambda gpu: gpu.state is ClockState.YIELDED, "the guard yields")
    await controller_of.close()
    stage.guard.terminate()
    assert await asyncio.to_thread(stage.guard.wait, 90) == 0
    assert stage.locks() == [(1800, 1800), None, None, None]
    assert not [call for call in stage.resets() if call.gpu == 0]


async def test_a_clock_from_before_and_the_operators_word(
    controller_of: GuardClient, stage: GuardStage
) -> None:
    """A lock that was there first is found before anything is set; `--resume` takes the GPU all the same."""
    client = controller_of
    stage.gpus.request_lock(2, (900, 900))
    await seen(client, 2, lambda gpu: gpu.state is ClockState.YIELDED, "the guard yields")
    with pytest.raises(GuardError, match="nothing was set by this guard"):
        await client.set_clocks(UUIDS[2:3], 300, 1200)
    done = await asyncio.to_thread(stage.run, "--resume")
    assert done.returncode == 0, done.stderr
    await asyncio.sleep(2.0)  # the other's clock is still there: the operator knows
    await client.set_clocks(UUIDS[2:3], 300, 1200)
    assert stage.locks()[2] == (300, 1200)
    await client.close()


@pytest.mark.parametrize("obedience", ["wrong", "ignore"])
async def test_a_clock_not_obeyed(controller_of: GuardClient, stage: GuardStage, obedience: str) -> None:
    """A driver that says yes and does otherwise: the group goes to default, and is tried again later."""
    client = controller_of
    stage.gpus.inject(0, Fault(SET, obedience=obedience, count=1))  # type: ignore[arg-type]
    await client.set_clocks(UUIDS[:2], 300, 1200)
    gpu = await seen(client, 0, lambda gpu: gpu.state is ClockState.DISOBEYED, "not obeyed is found")
    assert gpu.alarm is not None and "clock not obeyed: 300-1200 MHz were set" in gpu.alarm
    await eventually(lambda: stage.locks()[:2] == [None, None], "the group at default")
    with pytest.raises(GuardError) as refused:
        await client.set_clocks(UUIDS[:2], 300, 1200)
    assert refused.value.code == Code.DISOBEYED
    await seen(client, 0, lambda gpu: gpu.alarm is None, "the alarm ends")
    await obeyed(client, stage, 1200)
    assert (await client.status()).disobeyed == 1
    await client.close()


async def test_limits_are_told_and_are_no_fault(controller_of: GuardClient, stage: GuardStage) -> None:
    """Power cap and heat lower the clock below the lock: told by name, never an alarm."""
    client = controller_of
    await obeyed(client, stage, 2400)
    stage.gpus.set_power_cap_w(0, 120.0)
    stage.gpus.set_temperature(1, 95.0)
    await seen(client, 0, lambda gpu: gpu.limited_by == ("power_cap",), "the power cap is told")
    await seen(client, 1, lambda gpu: "sw_thermal" in gpu.limited_by, "the heat is told")
    await asyncio.sleep(2.0)
    status = await client.status()
    assert [gpu.alarm for gpu in status.gpus] == [None] * 4
    assert stage.locks()[:2] == [(300, 2400)] * 2
    await client.close()


async def test_a_driver_reload_under_a_lock(controller_of: GuardClient, stage: GuardStage) -> None:
    """The lock is gone with the driver: told as such, the rest of the group undone, then set anew."""
    client = controller_of
    await obeyed(client, stage, 1200)
    stage.gpus.reload_driver(0)
    gpu = await seen(client, 0, lambda gpu: gpu.alarm is not None, "the reload is found")
    assert gpu.alarm is not None and "driver was reloaded" in gpu.alarm
    await eventually(lambda: stage.locks()[:2] == [None, None], "the group at default")
    await seen(client, 0, lambda gpu: gpu.alarm is None, "the pause ends")
    await client.set_clocks(UUIDS[:2], 300, 900)
    assert stage.locks()[:2] == [(300, 900)] * 2
    status = await client.status()
    assert (status.driver_reloads, status.yields, status.disobeyed) == (1, 0, 0)
    await client.close()


@pytest.mark.usefixtures("hang")
async def test_hung_readings_do_not_hold_up_a_set(controller_of: GuardClient, stage: GuardStage) -> None:
    """Reading back has a thread of its own: while it hangs, clocks are set and reset as ever."""
    client = controller_of
    stage.gpus.inject(0, Fault("nvmlDeviceGetUtilizationRates", hang_s=60.0))
    await seen(client, 0, lambda gpu: gpu.clock_mhz is None, "nothing can be read back")
    await client.set_clocks(UUIDS[:2], 300, 1200)
    assert stage.locks()[:2] == [(300, 1200)] * 2
    await client.reset(UUIDS[:2])
    assert stage.locks()[:2] == [None, None]
    await client.close()
