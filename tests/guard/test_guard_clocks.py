"""What a guard sets, refuses and undoes; all through the unmodified NVML binding."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from guard_stage import UUIDS, GuardStage, eventually

from kvwatt_sim.nvml.said import Fault
from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import ClockState, Code, GuardError

SET = "nvmlDeviceSetGpuLockedClocks"
RESET = "nvmlDeviceResetGpuLockedClocks"


async def refusal(client: GuardClient, uuids: list[str], floor_mhz: int, target_mhz: int) -> GuardError:
    with pytest.raises(GuardError) as refused:
        await client.set_clocks(uuids, floor_mhz, target_mhz)
    return refused.value


async def test_locks_a_range(client: GuardClient, stage: GuardStage) -> None:
    """A set locks every GPU of the group to floor..target and no other GPU."""
    await client.set_clocks(UUIDS[:2], 300, 1200)
    assert stage.locks() == [(300, 1200), (300, 1200), None, None]
    states = [gpu.state for gpu in (await client.status()).gpus]
    assert states == [ClockState.SET, ClockState.SET, ClockState.DEFAULT, ClockState.DEFAULT]


async def test_latest_wins(client: GuardClient, stage: GuardStage) -> None:
    """A new set replaces the last one without a reset in between."""
    await client.set_clocks(UUIDS[:1], 300, 1200)
    await client.set_clocks(UUIDS[:1], 300, 900)
    assert stage.locks()[0] == (300, 900)
    assert not stage.resets()


async def test_reset_undoes_only_ours(client: GuardClient, stage: GuardStage) -> None:
    """A reset leaves GPUs alone that this guard did not set, though they are on its list."""
    stage.gpus.request_lock(2, (600, 600))
    await client.set_clocks(UUIDS[:1], 300, 1200)
    await client.reset(UUIDS[:3])
    assert stage.locks() == [None, None, (600, 600), None]
    assert [call.gpu for call in stage.resets()] == [0]


@pytest.mark.parametrize(
    ("floor_mhz", "target_mhz", "why"),
    [
        (210, 1200, "300 <= floor_mhz"),  # supported, below the bound
        (300, 2520, "<= 2400"),  # supported, above the bound
        (1200, 900, "floor_mhz <= target_mhz"),
        (300, 1201, "nearest 1200"),  # not a supported clock
        (301, 1200, "nearest 300"),
        (-300, 1200, "floor_mhz = -300"),
        (0, 0, "floor_mhz = 0"),
    ],
)
async def test_refused_clocks_never_reach_the_driver(
    client: GuardClient, stage: GuardStage, floor_mhz: int, target_mhz: int, why: str
) -> None:
    """A clock out of bounds, out of order or not supported is refused by value, before any setter."""
    error = await refusal(client, UUIDS[:2], floor_mhz, target_mhz)
    assert error.code == Code.REFUSED_CLOCK
    assert why in error.message
    assert stage.gpus.setter_log() == []
    await client.set_clocks(UUIDS[:1], 300, 1200)
    assert len(stage.sets()) == 1


async def test_unlisted_gpu(client: GuardClient, stage: GuardStage) -> None:
    """A GPU that is not on the guard's list is refused, and so is the group it is in."""
    error = await refusal(client, [UUIDS[0], "GPU-elsewhere"], 300, 1200)
    assert error.code == Code.UNKNOWN_GPU
    assert stage.gpus.setter_log() == []


async def test_mig(client: GuardClient, stage: GuardStage) -> None:
    """A GPU in MIG mode is refused with the reason, and its group is left at default."""
    error = await refusal(client, [UUIDS[0], UUIDS[3]], 300, 1200)
    assert error.code == Code.MIG
    assert "slices share one clock" in error.message
    assert stage.gpus.setter_log() == []


async def test_no_permission(client: GuardClient, stage: GuardStage) -> None:
    """Without permission a set fails, says what is needed, and leaves nothing to undo."""
    stage.gpus.set_permission("deny")
    error = await refusal(client, UUIDS[:1], 300, 1200)
    assert error.code == Code.NO_PERMISSION
    assert "CAP_SYS_ADMIN" in error.message
    status = await client.status()
    assert status.gpus[0].state is ClockState.DEFAULT
    assert "CAP_SYS_ADMIN" in (status.gpus[0].fault or "")
    stage.gpus.set_permission("allow")
    await client.set_clocks(UUIDS[:1], 300, 1200)
    assert stage.locks()[0] == (300, 1200)


@pytest.mark.parametrize("error", ["UNKNOWN", "NOT_SUPPORTED", "INVALID_ARGUMENT", "GPU_IS_LOST"])
async def test_partial_failure_rolls_back(client: GuardClient, stage: GuardStage, error: str) -> None:
    """When one GPU of a group refuses, the whole group goes to driver default, earlier locks included."""
    await client.set_clocks(UUIDS[:3], 300, 1500)
    stage.gpus.inject(1, Fault(call=SET, error=error))
    await refusal(client, UUIDS[:3], 300, 1200)
    assert stage.locks() == [None, None, None, None]
    status = await client.status()
    assert status.rollbacks == 1
    assert status.gpus[1].fault is None  # its reset worked
    stage.gpus.clear_faults(1)
    await client.set_clocks(UUIDS[:3], 300, 1200)
    assert stage.locks()[:3] == [(300, 1200)] * 3


async def test_lost_once(client: GuardClient, stage: GuardStage) -> None:
    """A GPU lost and found again between two calls is fetched anew by UUID and set."""
    stage.gpus.inject(0, Fault(call=SET, error="GPU_IS_LOST", count=1))
    await client.set_clocks(UUIDS[:1], 300, 1200)
    assert stage.locks()[0] == (300, 1200)


async def test_failed_reset_is_retried(client: GuardClient, stage: GuardStage) -> None:
    """A reset that fails is reported, retried, and blocks new sets on that GPU until it succeeds."""
    await client.set_clocks(UUIDS[:2], 300, 1200)
    stage.gpus.inject(0, Fault(call=RESET, error="UNKNOWN"))
    with pytest.raises(GuardError, match="retried"):
        await client.reset(UUIDS[:2])
    assert stage.locks()[:2] == [(300, 1200), None]
    assert (await refusal(client, UUIDS[:1], 300, 900)).code == Code.RESETTING
    stage.gpus.clear_faults(0)
    await eventually(lambda: stage.locks()[0] is None, "the reset of GPU 0 succeeds")


@pytest.mark.usefixtures("hang")
async def test_hung_setter(client: GuardClient, stage: GuardStage) -> None:
    """A setter that hangs fails its group only: the other GPUs stay controllable and the guard answers."""
    stage.gpus.inject(0, Fault(call=SET, hang_s=60.0, count=1))
    error = await refusal(client, UUIDS[:2], 300, 1200)
    assert error.code == Code.HUNG
    assert stage.locks() == [None, None, None, None]
    await client.set_clocks(UUIDS[1:3], 300, 900)
    assert stage.locks() == [None, (300, 900), (300, 900), None]
    status = await client.status()
    assert status.gpus[0].state is ClockState.HUNG
    assert (await refusal(client, UUIDS[:1], 300, 900)).code == Code.HUNG


@pytest.mark.usefixtures("hang")
async def test_late_setter_is_undone(client: GuardClient, stage: GuardStage) -> None:
    """A set that hung and takes effect after all is undone when it comes back."""
    stage.gpus.inject(0, Fault(call=SET, hang_s=60.0, count=1))
    await refusal(client, UUIDS[:1], 300, 1200)
    stage.gpus.clear_faults(0)  # ends the hang: the driver now does what it was asked
    await eventually(lambda: len(stage.sets()) == 1, "the hung set takes effect")
    await eventually(lambda: stage.locks()[0] is None and stage.resets()[-1].gpu == 0, "it is undone")
    sets, resets = stage.sets(), stage.resets()
    await eventually(lambda: stage.resets()[-1].t_s >= sets[-1].t_s, "the last word is a reset")
    assert resets
    await client.set_clocks(UUIDS[:1], 300, 900)
    assert stage.locks()[0] == (300, 900)


async def test_only_the_guard_calls_setters(client: GuardClient, stage: GuardStage) -> None:
    """Every setter call of a session comes from the guard's process."""
    await client.set_clocks(UUIDS[:1], 300, 1200)
    await client.reset(UUIDS[:1])
    pids = {call.pid for call in stage.gpus.setter_log()}
    assert len(pids) == 1
    assert pids == {stage.guard.pid}


def test_no_other_third_party_import() -> None:
    """The guard's process imports the standard library, nvidia-ml-py and its own package, nothing else."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import kvwattd.guard.main\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(names - set(sys.stdlib_module_names)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True
    )
    assert done.stdout.strip() == "['kvwattd', 'pynvml']"


def test_setters_are_in_one_file() -> None:
    """No source file but the guard's own two names a setter of NVML or of AMD SMI."""
    root = Path(__file__).parents[2]
    setter = re.compile(r"(?:pynvml|nvml|n)\.nvmlDevice(?:Set|Reset|Clear)|import .*nvmlDevice(?:Set|Reset)")
    sources = [path for part in ("predictor", "daemon", "simulator") for path in (root / part).rglob("*.py")]
    found = [path.relative_to(root).as_posix() for path in sources if setter.search(path.read_text())]
    assert found == ["daemon/kvwattd/guard/setters.py"]
    amd = re.compile(r"amdsmi_(?:set|reset|clean)_")
    found = [path.relative_to(root).as_posix() for path in sources if amd.search(path.read_text())]
    assert found == ["daemon/kvwattd/guard/amd_setters.py"]
