"""systemd's part, played after what a unit file says, where no systemd can be had.

Start and wait for READY, kill on a missed WATCHDOG, run ExecStopPost after any end, start again unless the
exit status forbids it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path


class Supervisor:
    """One unit; `command` turns its command lines into ones that run here."""

    def __init__(
        self, unit: Path, folder: Path, command: Callable[[list[str]], list[str]], env: Mapping[str, str]
    ) -> None:
        self._settings = dict(
            line.partition("=")[::2]
            for line in unit.read_text().splitlines()
            if "=" in line and not line.startswith("#")
        )
        self._command = command
        self._notify = folder / "notify"
        self._env = {**env, "NOTIFY_SOCKET": str(self._notify)}
        self._fed_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.exits: list[int] = []
        self.watchdog_kills = 0
        self.failed = False

    async def start(self) -> None:
        """Returns when it is ready, or has failed."""
        self._task = asyncio.create_task(self._run())
        waiting = asyncio.create_task(self.ready.wait())
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def stop(self) -> None:
        """SIGTERM, as `systemctl stop`; the stop hook runs."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            if self.process is not None and self.process.returncode is None:
                self.process.terminate()
                await self.process.wait()
            await self._exec("ExecStopPost")

    def kill(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def _run(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(str(self._notify))
            channel.setblocking(False)
            hearing = asyncio.create_task(self._hear(channel))
            try:
                while await self._once():  # noqa: ASYNC110  # nothing is polled: that is RestartSec
                    await asyncio.sleep(_seconds(self._settings["RestartSec"]))
            finally:
                hearing.cancel()

    async def _once(self) -> bool:
        """One life of the service; False when it must not be started again."""
        self.ready.clear()
        limit_s = _seconds(self._settings["WatchdogSec"])
        loop = asyncio.get_running_loop()
        self._fed_s = loop.time()
        arguments = self._command(shlex.split(self._settings["ExecStart"]))
        env = {**self._env, "WATCHDOG_USEC": str(int(limit_s * 1e6))}
        self.process = await asyncio.create_subprocess_exec(*arguments, env=env)
        ending = asyncio.create_task(self.process.wait())
        while not ending.done():
            await asyncio.wait({ending}, timeout=0.05)
            if self.ready.is_set() and loop.time() - self._fed_s > limit_s and not ending.done():
                self.watchdog_kills += 1
                self.process.send_signal(signal.Signals[self._settings["WatchdogSignal"]])
                await ending
        self.ready.clear()
        self.exits.append(ending.result())
        await self._exec("ExecStopPost")
        self.failed = str(ending.result()) in self._settings["RestartPreventExitStatus"].split()
        return not self.failed

    async def _hear(self, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            lines = (await loop.sock_recv(channel, 4096)).decode().splitlines()
            if "READY=1" in lines or "WATCHDOG=1" in lines:
                self._fed_s = loop.time()
            if "READY=1" in lines:
                self.ready.set()

    async def _exec(self, key: str) -> None:
        arguments = self._command(shlex.split(self._settings[key]))
        done = await asyncio.create_subprocess_exec(*arguments, env=self._env)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_seconds(self._settings["TimeoutStopSec"])):
                await done.wait()


def _seconds(text: str) -> float:
    return float(text[:-2]) / 1e3 if text.endswith("ms") else float(text.removesuffix("s"))
