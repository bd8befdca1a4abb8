"""Starts a simulated server as a subprocess, for tests, benchmarks and the demo.

    with SimServer(card="l20") as server:
        httpx.post(f"{server.base_url}/v1/completions", json={...})

or `async with`. Without `state` the simulated GPUs are made too, in a temporary folder, and `env()` gives the
environment in which pynvml sees them. After `stop` or `kill`, `start` brings the server back at its port.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx

from kvwatt_sim import cards
from kvwatt_sim.nvml.build import build
from kvwatt_sim.nvml.control import SimGpus, env_for
from kvwatt_sim.nvml.spec import demo_uuid


class ServerStartError(RuntimeError):
    """The server ended or stayed silent before it was ready; the message ends with what it wrote."""


class SimServer:
    """One server process. `options` are command line options: `max_num_seqs=8` is `--max-num-seqs 8`.

    A switch is given as True.
    """

    def __init__(
        self,
        card: str = "l20",
        *,
        state: Path | None = None,
        gpus: tuple[int, ...] = (0,),
        start_timeout_s: float = 90.0,
        **options: str | int | float,
    ) -> None:
        self.card = card
        self.gpus = gpus
        self.start_timeout_s = start_timeout_s
        self._options = options
        self._state = state
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def base_url(self) -> str:
        """Where the server listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id; raises RuntimeError when the server has not been started."""
        return self._running.pid

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def state(self) -> Path:
        """The state file of the simulated GPUs; raises RuntimeError before the start when none was given."""
        if self._state is None:
            raise RuntimeError("the server has not been started")
        return self._state

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUIDs of GPUs made by this launcher."""
        return tuple(demo_uuid(index) for index in self.gpus)

    def env(self) -> dict[str, str]:
        """Environment for processes that look at the same simulated GPUs through NVML."""
        return env_for(build(), self.state)

    def start(self, **options: str | int | float) -> Self:
        """Start and wait until it answers; `options` replace those before. Raises ServerStartError."""
        self._options |= options
        if self.running:
            raise RuntimeError(f"the server runs already, with process id {self.pid}")
        if self._state is None:
            self._folder = tempfile.TemporaryDirectory(prefix="kvwatt-sim-")
            self._state = Path(self._folder.name) / "gpus"
            spec = cards.load(self.card, len(self.gpus)).gpu_spec
            SimGpus.create(self._state, [spec(demo_uuid(i)) for i in range(max(self.gpus) + 1)]).close()
        if self._log is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close()
        self._process = subprocess.Popen(
            self._command(self._state), stdout=subprocess.PIPE, stderr=self._log, stdin=subprocess.DEVNULL
        )
        try:
            self.port = self._read_port(self._process)
        except BaseException:
            self.kill()
            self.close()
            raise
        return self

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM, then SIGKILL after `timeout_s`. Returns the exit status; safe to call twice."""
        process = self._running
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
        return self._reap(process)

    def kill(self) -> int:
        """SIGKILL: the server gets no chance to publish that its GPUs are idle."""
        process = self._running
        process.kill()
        return self._reap(process)

    def close(self) -> None:
        """Stop, and remove what was made for the server: its log and the GPUs that it came with."""
        if self._process is not None:
            self.stop()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder, self._state = None, None

    def log(self) -> str:
        """What the server wrote to its standard error so far."""
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def misbehave(self, mode: str, **settings: object) -> None:
        """Set how `/metrics` answers from now on: see `kvwatt_sim.server.faults.MetricsFault`."""
        url = f"{self.base_url}/_sim/metrics"
        httpx.post(url, json={"mode": mode, **settings}, timeout=90).raise_for_status()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process

    def _command(self, state: Path) -> list[str]:
        fixed = {"card": self.card, "state": state, "gpu": ",".join(map(str, self.gpus)), "port": self.port}
        command = [sys.executable, "-m", "kvwatt_sim.server"]
        for name, value in (fixed | self._options).items():
            option = f"--{name.replace('_', '-')}"
            command += [option] if value is True else [option, str(value)]
        return command

    def _read_port(self, process: subprocess.Popen[bytes]) -> int:
        """The number behind READY, the first line that the server prints."""
        assert process.stdout is not None  # noqa: S101  # opened with PIPE above
        deadline_s = time.monotonic() + self.start_timeout_s
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not selector.select(left_s):
                    raise ServerStartError(f"no READY within {self.start_timeout_s} s\n{self.log()}")
                read = os.read(process.stdout.fileno(), 4096)
                if not read:
                    raise ServerStartError(f"the server ended with status {process.wait()}\n{self.log()}")
                line += read
        word, _, port = line.decode().strip().partition(" ")
        if word != "READY" or not port.isdigit():
            raise ServerStartError(f"expected READY and a port, got {line!r}")
        return int(port)

    def _reap(self, process: subprocess.Popen[bytes]) -> int:
        status = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return status
