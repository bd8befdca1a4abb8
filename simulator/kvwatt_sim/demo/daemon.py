"""The real daemon, as a process of its own beside the plant it controls, configured by a file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx

from kvwatt.state import Slo, SloTarget
from kvwatt_sim.demo.plant import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, Plant
from kvwatt_sim.demo.settings import DemoError

STOP_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 2.0
LOG_TAIL_LINES = 15
_API = re.compile(r"REST and metrics at (http://\S+)")


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The part of /api/v1/status that the live view shows."""

    regime: str
    target_mhz: int | None
    reason: str


class Daemon:
    """`python -m kvwattd run`, started by `with`, stopped with its guard on the way out."""

    def __init__(self, plant: Plant, model: Path, folder: Path, slo: Slo) -> None:
        self._plant = plant
        self._config = folder / "kvwatt.toml"
        self._log_path = folder / "kvwatt.log"
        self._config.write_text(_configuration(plant, model, folder, slo), encoding="utf-8")
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """Process id; raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("the daemon has not been started")
        return self._process.pid

    def __enter__(self) -> Self:
        self._log = self._log_path.open("wb")
        # A session of its own: a Ctrl-C at the terminal is for the demo, which then stops things in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvwattd", "run", "--config", str(self._config)],
            env={**os.environ, **self._plant.env},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL; its guard restores the clocks and ends by itself."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()

    def wait_active(self, timeout_s: float) -> None:
        """Return when it controls the clock. Raises DemoError when it ends or takes too long."""
        deadline_s = time.monotonic() + timeout_s
        regime = "not answering yet"
        with httpx.Client(timeout=CALL_TIMEOUT_S) as client:
            while time.monotonic() < deadline_s:
                self.check()
                status = self._poll(client)
                if status is not None:
                    if status.regime == "active":
                        return
                    regime = f"{status.regime}: {status.reason}"
                time.sleep(0.1)
        raise DemoError(
            f"the daemon does not control the clock after {timeout_s:.0f} s ({regime})\n{self.log_tail()}"
        )

    def check(self) -> None:
        """Raises DemoError when the daemon has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise DemoError(f"the daemon ended with status {self._process.returncode}\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines that the daemon wrote."""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    async def status(self, client: httpx.AsyncClient) -> DaemonStatus | None:
        """What it decided last; None when it does not answer in time."""
        try:
            answer = await client.get(f"{self.url}/api/v1/status", timeout=CALL_TIMEOUT_S)
            return _status(answer.raise_for_status().json())
        except httpx.HTTPError:
            return None

    def _poll(self, client: httpx.Client) -> DaemonStatus | None:
        if not self.url:
            found = _API.search(self._log_path.read_text(encoding="utf-8", errors="replace"))
            if found is None:
                return None
            self.url = found[1]
        try:
            return _status(client.get(f"{self.url}/api/v1/status").raise_for_status().json())
        except httpx.HTTPError:
            return None


def _status(document: dict[str, Any]) -> DaemonStatus:
    instance = document["instances"][0]
    decision = instance["last_decision"]
    reason = decision["reason"] if decision else instance["regime_reason"]
    return DaemonStatus(str(instance["regime"]), instance["clock_target_mhz"], str(reason))


def _configuration(plant: Plant, model: Path, folder: Path, slo: Slo) -> str:
    """Everything else is the daemon's default."""
    promises = "".join(
        _promise(name, target) for name, target in (("ttft", slo.ttft), ("tbt", slo.tbt), ("e2e", slo.e2e))
    )
    return f"""[daemon]
mode = "active"
state_dir = {_toml(folder / "state")}

[api]
port = 0

[guard]
spawn = true
socket = {_toml(folder / "guard.sock")}

[model]
path = {_toml(model)}
{promises}
[[instance]]
name = "demo"
url = {_toml(plant.server.base_url)}
gpus = [{_toml(plant.uuid)}]
max_num_seqs = {MAX_NUM_SEQS}
max_num_batched_tokens = {MAX_NUM_BATCHED_TOKENS}
"""


def _promise(name: str, target: SloTarget | None) -> str:
    if target is None:
        return ""
    return f"\n[slo.{name}]\nlimit_s = {target.limit_s}\nquantile = {target.quantile}\n"


def _toml(value: Path | str) -> str:
    """A TOML basic string."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
