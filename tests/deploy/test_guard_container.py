"""What the guard's image runs: the guard from its own files alone, under a first process that watches it."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pynvml
import pytest

from kvwatt_sim import cards
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import demo_uuid
from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import GuardError

REPOSITORY = Path(__file__).parents[2]
CONTAINERS = REPOSITORY / "deploy" / "containers"
UUIDS = [demo_uuid(0), demo_uuid(1)]
PATIENCE_S = 90.0
# The interpreter below the virtual environment: kvwatt and what it needs are not installed there.
PYTHON = str(Path(sys.base_prefix) / "bin" / "python3")


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[SimGpus]:
    """Two GPUs; locks come into force at once."""
    card = cards.load("l20", 1)
    specs = [replace(card.gpu_spec(uuid), switch_latency_s=0.0) for uuid in UUIDS]
    with SimGpus.create(tmp_path / "gpus", specs) as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """/opt/kvwatt as the Dockerfile's COPY lines fill it, with NVML's bindings beside it."""
    folder = tmp_path / "opt"
    (folder / "kvwattd").mkdir(parents=True)
    text = (CONTAINERS / "guard.Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--)(.+) (/opt/kvwatt\S*)$", text, re.MULTILINE)
    assert len(copied) == 3
    for sources, place in copied:
        target = folder / place.removeprefix("/opt/kvwatt").strip("/")
        for source in sources.split():
            if (REPOSITORY / source).is_dir():
                shutil.copytree(REPOSITORY / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(REPOSITORY / source, target)
    shutil.copy(Path(pynvml.__file__), folder)
    return folder


@pytest.fixture
def init(gpus: SimGpus, image: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The first process, with state file and socket below the test's folder; every visible GPU allowed."""
    code = "import sys, runpy; from pathlib import Path; here = Path(sys.argv.pop(1));"
    code += "found = runpy.run_path(str(here / 'guard_init.py'));"
    code += f"found['main'].__globals__['STATE_FILE'] = Path({str(tmp_path / 'state.json')!r});"
    code += "raise SystemExit(found['main'](sys.argv[1:]))"
    environment = {**os.environ, **env_for(build(), gpus.path), "PYTHONPATH": str(image)}
    environment |= {"KVWATT_GUARD_GPUS": "visible", "KVWATT_LOCK_DIR": str(tmp_path / "locks")}
    arguments = ["--socket", str(tmp_path / "guard.sock"), "--nvml-deadline-s", "0.8"]
    process = subprocess.Popen([PYTHON, "-c", code, str(image), *arguments], env=environment)
    yield process
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert _locks(gpus) == [None, None]


def _locks(gpus: SimGpus) -> list[tuple[int, int] | None]:
    return [gpus.lock_mhz(i) for i in range(2)]


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.02)


async def _connected(tmp_path: Path) -> GuardClient:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            client = GuardClient(tmp_path / "guard.sock", timeout_s=PATIENCE_S)
            try:
                hello = await client.connect()
            except GuardError:
                await client.close()
                await asyncio.sleep(0.05)
                continue
            assert sorted(hello.gpus) == sorted(UUIDS)
            return client


async def test_a_guard_that_hangs_and_dies(
    init: subprocess.Popen[bytes], gpus: SimGpus, image: Path, tmp_path: Path
) -> None:
    """A hung one is killed, clocks go to default without the container's end, and another serves."""
    client = await _connected(tmp_path)
    await client.set_clocks(UUIDS, 900, 1200)
    assert _locks(gpus) == [(900, 1200)] * 2
    (guard,) = psutil.Process(init.pid).children()
    guard.send_signal(signal.SIGSTOP)
    await _until(lambda: _locks(gpus) == [None, None])
    await client.close()
    await (await _connected(tmp_path)).close()
    assert init.poll() is None
    assert await _health(image, tmp_path / "guard.sock") == 0
    assert await _health(image, tmp_path / "nobody.sock") == 1


async def _health(image: Path, place: Path) -> int:
    command = [PYTHON, str(image / "guard_health.py"), str(place)]
    done = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PYTHONPATH": str(image)})
    return await done.wait()


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A misspelt choice of GPUs allows none."""
    monkeypatch.setenv("KVWATT_GUARD_GPUS", "al")
    assert runpy.run_path(str(CONTAINERS / "guard_init.py"))["main"]([]) == 2


def test_times_are_those_of_the_unit() -> None:
    """In a container and under systemd the guard is watched alike."""
    unit = (REPOSITORY / "systemd" / "kvwatt-guard.service").read_text()
    found = runpy.run_path(str(CONTAINERS / "guard_init.py"))
    assert f"WatchdogSec={found['WATCHDOG_S']:.0f}s" in unit
    assert f"TimeoutStartSec={found['START_S']:.0f}s" in unit
    assert f"TimeoutStopSec={found['STOP_S']:.0f}s" in unit
    assert f"RestartSec={found['RESTART_S'] * 1e3:.0f}ms" in unit
    assert f"RestartPreventExitStatus={found['EXIT_CONFIG']}" in unit
