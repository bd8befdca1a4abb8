"""Starts, stops and looks at guards in tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import SetterCall
from kvwatt_sim.nvml.spec import demo_uuid
from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import GuardError, Role

UUIDS = [demo_uuid(index) for index in range(4)]
PATIENCE_S = 90.0
# A lease that no test waits for, and a driver that is given its time on a busy machine: tests in which a
# lease ends or a call hangs say so.
LEASE_S = 20.0
NVML_DEADLINE_S = 10.0
HANG_S = 1.2  # `GuardStage.nvml_deadline_s` of tests in which a call never comes back


async def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until it holds; fails only after a time no working system needs."""
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s, f"never happened: {what}"
        await asyncio.sleep(0.02)


class GuardStage:
    """One state file, one socket, one guard at a time; `uuids`: its GPUs, as their vendor names them."""

    def __init__(
        self, folder: Path, gpus: SimGpus, environment: Mapping[str, str], uuids: Sequence[str] = UUIDS
    ) -> None:
        self.folder = folder
        self.gpus = gpus
        self.socket = folder / "guard.sock"
        self.state_file = folder / "state.json"
        self.environment = {**os.environ, **environment}
        self.uuids = uuids
        self.nvml_deadline_s = NVML_DEADLINE_S
        self._running: list[subprocess.Popen[str]] = []

    def arguments(self, *extra: str, lease_s: float = LEASE_S) -> list[str]:
        flags = ["--socket", str(self.socket), "--state-file", str(self.state_file)]
        flags += ["--min-mhz", "300", "--max-mhz", "2400", "--lease-s", str(lease_s)]
        flags += ["--nvml-deadline-s", str(min(self.nvml_deadline_s, lease_s))]
        for uuid in self.uuids:
            flags += ["--gpu", uuid]
        return [sys.executable, "-m", "kvwattd.guard", *flags, *extra]

    def launch(self, *extra: str, lease_s: float = LEASE_S, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.arguments(*extra, lease_s=lease_s),
            env={**self.environment, **env},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        return process

    async def start(self, *extra: str, lease_s: float = LEASE_S, **env: str) -> subprocess.Popen[str]:
        """A guard that answers."""
        process = self.launch(*extra, lease_s=lease_s, **env)
        until_s = time.monotonic() + PATIENCE_S
        while not await self._answers():
            assert process.poll() is None and process.stderr is not None, process.communicate()[1]
            assert time.monotonic() < until_s
        return process

    def run(self, *extra: str) -> subprocess.CompletedProcess[str]:
        """A guard that ends by itself."""
        return subprocess.run(
            self.arguments(*extra),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def run_bare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A guard with these arguments alone, that ends by itself."""
        return subprocess.run(
            [sys.executable, "-m", "kvwattd.guard", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def locks(self) -> list[tuple[int, int] | None]:
        return [self.gpus.lock_mhz(index) for index in range(self.gpus.count)]

    def sets(self) -> list[SetterCall]:
        return [call for call in self.gpus.setter_log() if "Set" in call.call or "_clk_" in call.call]

    def resets(self) -> list[SetterCall]:
        return [call for call in self.gpus.setter_log() if "Reset" in call.call or "perf_level" in call.call]

    @property
    def guard(self) -> subprocess.Popen[str]:
        """The one started last."""
        return self._running[-1]

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=180)

    async def _answers(self) -> bool:
        client = GuardClient(self.socket, timeout_s=1.0)
        try:
            await client.connect(Role.STATUS)
        except GuardError:
            await asyncio.sleep(0.05)
            return False
        finally:
            await client.close()
        return True
