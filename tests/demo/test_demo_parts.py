from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from kvwatt import artifact
from kvwatt_sim import cards, workload
from kvwatt_sim.demo import model as demo_model
from kvwatt_sim.demo.cpu import CpuMeter, children, cpu_s
from kvwatt_sim.demo.daemon import Daemon
from kvwatt_sim.demo.model import cached_model, is_cached
from kvwatt_sim.demo.plant import Plant, libraries, start_plants
from kvwatt_sim.demo.serve import serve
from kvwatt_sim.demo.settings import SLO, Schedule
from kvwatt_sim.demo.view import LineView
from kvwatt_sim.nvml.control import SimGpus, env_for
from kvwatt_sim.server.launch import SimServer
from kvwattd.config import Mode, load_config

SET_CLOCKS = """
import pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
for clock in (1200, 1500):
    pynvml.nvmlDeviceSetGpuLockedClocks(handle, 210, clock)
pynvml.nvmlDeviceResetGpuLockedClocks(handle)
try:
    pynvml.nvmlDeviceSetGpuLockedClocks(handle, 0, 0)
except pynvml.NVMLError:
    pass
"""


def _plant(folder: Path, stack: ExitStack) -> Plant:
    libs, state = libraries(), folder / "state.gpu"
    spec = cards.load("l20").gpu_spec("GPU-0")
    gpus = stack.enter_context(SimGpus.create(state, [spec], libs=libs))
    server = SimServer("l20", state=state)
    server.port = 9
    return Plant("kvwatt", "GPU-0", gpus, server, env_for(libs, state))


def test_the_daemon_gets_a_configuration_it_accepts(tmp_path: Path) -> None:
    """The written file is valid, active, spawns its guard and carries the demonstration's promises."""
    with ExitStack() as stack:
        plant = _plant(tmp_path, stack)
        Daemon(plant, tmp_path / "model", tmp_path, SLO)
    config = load_config(tmp_path / "kvwatt.toml")
    assert config.daemon.mode is Mode.ACTIVE
    assert config.guard.spawn
    assert config.slo_for("demo") == SLO
    assert config.instances[0].gpus == ("GPU-0",)


def test_only_accepted_clock_settings_count_as_changes(tmp_path: Path) -> None:
    """Locks and resets that the GPU accepted are counted once each, refused ones are not."""
    with ExitStack() as stack:
        plant = _plant(tmp_path, stack)
        assert plant.clock_changes() == 0
        subprocess.run([sys.executable, "-c", SET_CLOCKS], env={**os.environ, **plant.env}, check=True)
        assert plant.clock_changes() == 3
        assert plant.clock_changes() == 3


def test_the_model_is_trained_once_and_loads(tmp_path: Path) -> None:
    """The first call trains, the second returns the same artifact untouched, and it is for this GPU."""
    card = cards.load("l20")
    assert not is_cached(card, tmp_path)
    folder = cached_model(card, tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cached_model(card, tmp_path) == folder
    assert is_cached(card, tmp_path)
    assert stamps == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert artifact.load(folder).manifest.hardware == card.gpu_name


def test_a_damaged_model_is_trained_again(tmp_path: Path) -> None:
    """An artifact that cannot be read is replaced, not used."""
    card = cards.load("l20")
    folder = cached_model(card, tmp_path)
    (folder / artifact.MANIFEST).write_text("{", encoding="utf-8")
    assert cached_model(card, tmp_path) == folder
    artifact.load(folder)


def test_the_first_of_two_that_train_at_once_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process made meanwhile is not replaced: somebody may be reading it."""
    card = cards.load("l20")
    good = cached_model(card)
    placed: list[int] = []

    def train_slowly(*_: object, **__: object) -> object:
        shutil.copytree(good, tmp_path / good.name)
        placed.append((tmp_path / good.name).stat().st_ino)
        return artifact.load(good)

    monkeypatch.setattr(demo_model, "train", train_slowly)
    assert [cached_model(card, tmp_path).stat().st_ino] == placed
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


async def test_two_uncontrolled_plants_draw_the_same(tmp_path: Path) -> None:
    """Without a daemon both plants serve the same requests for the same energy: the comparison is fair."""
    plan = Schedule(warmup_s=1.0, arrivals_s=4.0, drain_s=25.0)
    requests = tuple(r for r in workload.generate(3.0, 5.0, seed=1) if r.output_tokens < 150)
    with ExitStack() as stack:
        plants = start_plants(stack, libraries(), tmp_path, ("one", "other"))
        async with asyncio.timeout(120):
            served = await serve(plants, None, requests, 1, plan, LineView(Console(quiet=True)))
        pids = [plant.server.pid for plant in plants]
    one, other = served.replays
    assert len(requests) > 5
    assert [r.tokens for r in one.records] == [r.output_tokens for r in requests]
    assert [r.tokens for r in other.records] == [r.output_tokens for r in requests]
    assert one.energy_j == pytest.approx(other.energy_j, rel=0.1)
    assert one.energy_with_warmup_j > one.energy_j > 0.0
    assert one.clock_changes == other.clock_changes == 0
    assert 0 < len(one.measured(served.start_s)) < len(requests)
    assert all(cpu_s(pid) is None for pid in pids)


def test_cpu_is_counted_for_living_processes() -> None:
    """This process has used CPU time; one that does not exist is left out."""
    assert (cpu_s(os.getpid()) or 0.0) > 0.0
    meter = CpuMeter({"me": os.getpid(), "nobody": 2**22 + 1})
    assert sum(index * index for index in range(200_000)) > 0
    assert set(meter.shares()) == {"me"}
    assert children(2**22 + 1) == ()
