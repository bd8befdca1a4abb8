"""The real daemon, as a process of its own beside the plant it controls, configured by a file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from kvwatt.state import Slo, SloTarget
from kvwatt_sim.demo.daemon_process import DaemonProcess
from kvwatt_sim.demo.plant import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, Plant
from kvwatt_sim.demo.settings import DemoError

CALL_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The part of /api/v1/status that the live view shows."""

    regime: str
    target_mhz: int | None
    reason: str


class Daemon(DaemonProcess):
    """Beside one plant, from the start on in control."""

    def __init__(
        self, plant: Plant, model: Path, folder: Path, slo: Slo, api: str = "[api]\nport = 0\n"
    ) -> None:
        super().__init__(plant.env, _configuration(plant, model, folder, slo, api), folder)

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

    async def status(self, client: httpx.AsyncClient) -> DaemonStatus | None:
        """What it decided last; None when it does not answer in time."""
        try:
            answer = await client.get(f"{self.url}/api/v1/status", timeout=CALL_TIMEOUT_S)
            return _status(answer.raise_for_status().json())
        except httpx.HTTPError:
            return None

    def _poll(self, client: httpx.Client) -> DaemonStatus | None:
        if not self.find_url():
            return None
        try:
            return _status(client.get(f"{self.url}/api/v1/status").raise_for_status().json())
        except httpx.HTTPError:
            return None


def _status(document: dict[str, Any]) -> DaemonStatus:
    instance = document["instances"][0]
    decision = instance["last_decision"]
    reason = decision["reason"] if decision else instance["regime_reason"]
    return DaemonStatus(str(instance["regime"]), instance["clock_target_mhz"], str(reason))


def _configuration(plant: Plant, model: Path, folder: Path, slo: Slo, api: str) -> str:
    """Everything else is the daemon's default."""
    return f"""[daemon]
mode = "active"
state_dir = {toml(folder / "state")}

{api}
[guard]
spawn = true
socket = {toml(folder / "guard.sock")}

[model]
path = {toml(model)}
{promises(slo)}
[[instance]]
name = "demo"
url = {toml(plant.server.base_url)}
gpus = [{toml(plant.uuid)}]
max_num_seqs = {MAX_NUM_SEQS}
max_num_batched_tokens = {MAX_NUM_BATCHED_TOKENS}
"""


def promises(slo: Slo) -> str:
    """The sections [slo.*]."""
    named = (("ttft", slo.ttft), ("tbt", slo.tbt), ("e2e", slo.e2e))
    return "".join(_promise(name, target) for name, target in named)


def _promise(name: str, target: SloTarget | None) -> str:
    if target is None:
        return ""
    return f"\n[slo.{name}]\nlimit_s = {target.limit_s}\nquantile = {target.quantile}\n"


def toml(value: Path | str) -> str:
    """A TOML basic string."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
