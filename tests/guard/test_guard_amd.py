"""The guard over AMD GPUs (simulated libamd_smi.so): the same promises, by the same tests, word for word.

Nothing here ran on hardware: the library is simulated, and its layouts are those of AMD's published binding.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import guard_stage
import pytest
import test_guard_clocks
import test_guard_lease
import test_guard_watch
from guard_stage import PATIENCE_S, GuardStage

from kvwatt_sim.amd.build import CSRC, SOURCES, STATE_CSRC, amd_uuid, build, env_for
from kvwatt_sim.nvml.build import compile_library, compiler
from kvwatt_sim.nvml.control import SimGpus
from kvwattd.guard.amd_library import AmdLibrary, AmdSmiError, Handle
from kvwattd.guard.amd_session import AmdSession
from kvwattd.guard.amd_setters import AmdClockSetter
from kvwattd.guard.client import GuardClient
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.protocol import Code, GuardError

UUIDS = [amd_uuid(uuid) for uuid in guard_stage.UUIDS]
SET, RESET = "amdsmi_set_gpu_clk_limit", "amdsmi_set_gpu_perf_level"

# Who dies, hangs or leaves; groups that fail in part; another program's clock.
test_kill_of_the_controller = test_guard_lease.test_kill_of_the_controller
test_stop_of_the_controller = test_guard_lease.test_stop_of_the_controller
test_kill_of_the_guard = test_guard_lease.test_kill_of_the_guard
test_failed_reset_is_retried = test_guard_clocks.test_failed_reset_is_retried
test_hung_setter = test_guard_clocks.test_hung_setter
test_another_writers_clock_survives_the_guard = test_guard_watch.test_another_writers_clock_survives_the_guard
controller_of = test_guard_watch.controller_of


@pytest.fixture(autouse=True)
def amd_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shared tests call the GPUs and the functions that faults are put into."""
    for module in (test_guard_lease, test_guard_clocks, test_guard_watch):
        monkeypatch.setattr(module, "UUIDS", UUIDS)
        monkeypatch.setattr(module, "SET", SET)
        monkeypatch.setattr(module, "RESET", RESET, raising=False)


@pytest.fixture
def stage(gpus: SimGpus, tmp_path: Path) -> Iterator[GuardStage]:
    made = GuardStage(tmp_path, gpus, env_for(build(), gpus.path), UUIDS)
    yield made
    for index in range(gpus.count):
        gpus.clear_faults(index)
    made.end()


async def test_a_partial_failure_rolls_back(client: GuardClient, stage: GuardStage) -> None:
    """When one GPU of a group refuses, the whole group goes to driver default, earlier limits included."""
    await test_guard_clocks.test_partial_failure_rolls_back(client, stage, "NOT_SUPPORTED")


async def test_a_divided_gpu_is_refused(client: GuardClient, stage: GuardStage) -> None:
    """The parts of a GPU share one clock, as MIG's slices do."""
    with pytest.raises(GuardError, match=r"divided \(CPX\)") as refused:
        await client.set_clocks([UUIDS[0], UUIDS[3]], 300, 1200)
    assert refused.value.code == Code.MIG
    assert stage.gpus.setter_log() == []


async def test_any_whole_clock_may_be_set_and_the_range_moves_in_order(
    client: GuardClient, stage: GuardStage
) -> None:
    """Limits follow one another upwards and downwards; what the driver lists moves with them."""
    for floor_mhz, target_mhz in ((300, 901), (1200, 2001), (307, 333), (300, 2400)):
        await client.set_clocks(UUIDS[:1], floor_mhz, target_mhz)
        assert stage.locks()[0] == (floor_mhz, target_mhz)
    assert {call.result for call in stage.sets()} == {"SUCCESS"}


async def test_a_gpu_that_another_program_holds_is_not_set(stage: GuardStage) -> None:
    """Its range is hidden by that program's limits: refused, and nothing is written."""
    stage.gpus.request_lock(0, (600, 600))
    await stage.start()
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await client.connect()
    with pytest.raises(GuardError, match="another program sets its clocks") as refused:
        await client.set_clocks(UUIDS[:1], 300, 1200)
    await client.close()
    assert refused.value.code == Code.YIELDED and stage.locks()[0] == (600, 600)
    assert stage.gpus.setter_log() == []


async def test_the_log_says_that_it_is_untested(stage: GuardStage) -> None:
    """Whoever runs it on hardware is told that nobody did before."""
    await stage.start()
    stage.guard.terminate()
    assert "never tried on hardware" in stage.guard.communicate(timeout=180)[1]


class HalfLibrary:
    """Takes the first limit and refuses the second as unsupported."""

    limits = 0

    def function(self, name: str) -> object:
        return name

    def partition(self, handle: Handle) -> str:
        return "SPX"

    def call(self, name: str, *arguments: object) -> None:
        self.limits += 1
        if self.limits == 2:
            raise AmdSmiError(name, 2)


class HalfSession(AmdSession):
    def _find(self, uuid: str) -> tuple[AmdLibrary, Handle]:
        return HalfLibrary(), ctypes.c_void_p(1)  # type: ignore[return-value] # what the setter needs of it


def test_half_a_set_is_never_told_as_nothing_done() -> None:
    """The guard takes "not supported" as refused before anything was done, and would not undo it."""
    with pytest.raises(NvmlCallError, match="only one of two limits") as caught:
        AmdClockSetter(HalfSession(), UUIDS[0]).set_range(300, 1200)
    assert caught.value.code is Code.AMDSMI


def test_without_the_library() -> None:
    """A machine without ROCm: said with the package's name, as a driver error of this GPU."""
    with pytest.raises(NvmlCallError, match="amd-smi-lib"):
        AmdClockSetter(AmdSession(), UUIDS[0]).supported_mhz()


def test_amds_own_binding_reads_the_simulated_library(gpus: SimGpus, tmp_path: Path) -> None:
    """AMD's unmodified Python package agrees on names, arguments and layouts, where it is installed."""
    found = importlib.util.find_spec("amdsmi")
    if found is None or found.origin is None:
        pytest.skip("AMD's package amdsmi is not installed")
    wrapper = Path(found.origin).with_name("amdsmi_wrapper.py").read_text()
    known = set(re.findall(r"AMDSMI_API amdsmi_status_t (\w+)\(", (CSRC / "amdsmi.c").read_text()))
    wanted = set(re.findall(r"_libraries\['libamd_smi.so'\]\.(\w+)", wrapper)) - known
    stubs = tmp_path / "stubs.c"
    lines = [
        f'__attribute__((visibility("default"))) int {n}(void); int {n}(void) {{ return 2; }}' for n in wanted
    ]
    stubs.write_text("\n".join(lines) + "\n")
    library = tmp_path / "libamd_smi.so"
    compile_library(compiler(), library, (*SOURCES, str(stubs)), ("-I", str(STATE_CSRC)))
    gpus.publish(0, 0.6, 0.3)
    script = (
        "import amdsmi as a\n"
        "a.amdsmi_init(a.AmdSmiInitFlags.INIT_AMD_GPUS)\n"
        "h = a.amdsmi_get_processor_handles()\n"
        "gfx = a.AmdSmiClkType.GFX\n"
        "print(len(h), a.amdsmi_get_gpu_device_uuid(h[0]), a.amdsmi_get_clock_info(h[0], gfx)['max_clk'])\n"
        "a.amdsmi_set_gpu_clk_limit(h[0], 'sclk', 'max', 1200)\n"
        "print(a.amdsmi_get_clock_info(h[0], gfx)['max_clk'], a.amdsmi_get_gpu_perf_level(h[0]))\n"
        "a.amdsmi_set_gpu_perf_level(h[0], a.AmdSmiDevPerfLevel.AUTO)\n"
        "print(a.amdsmi_get_energy_count(h[0])['counter_resolution'], a.amdsmi_get_gpu_perf_level(h[0]))\n"
    )
    environment = {**os.environ, **env_for(library, gpus.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.strip().splitlines()
    assert first == f"4 {UUIDS[0].removeprefix('AMD-')} 2520"
    assert second.startswith("1200 ") and "MANUAL" in second
    assert "AUTO" in third
