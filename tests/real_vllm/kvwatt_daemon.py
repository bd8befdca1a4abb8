"""The daemon exactly as a user runs it: `kvwatt run --config FILE` as a child process, its API over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from vllm_server import MAX_BATCHED_TOKENS, MAX_NUM_SEQS

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
LEASE_S = 2.0
TTFT_LIMIT_S = 2.0
TBT_LIMIT_S = 0.1
QUANTILE = 0.95

# Time limits are wider than the defaults: vLLM, the load and the daemon share two slow cores here.
CONFIG = """
[daemon]
mode = "active"
state_dir = "{folder}/state"
[api]
port = 0
[guard]
socket = "{folder}/guard.sock"
spawn = true
timeout_s = 1.0
lease_s = {lease_s}
[model]
path = "{model}"
[slo.ttft]
limit_s = {ttft_s}
quantile = {quantile}
[slo.tbt]
limit_s = {tbt_s}
quantile = {quantile}
[[instance]]
name = "tiny"
url = "{url}"
gpus = ["{gpu}"]
poll_s = 0.5
scrape_deadline_s = 1.0
stale_after_s = 3.0
max_num_seqs = {max_num_seqs}
max_num_batched_tokens = {max_num_batched_tokens}
"""


@dataclass(frozen=True)
class DaemonProcess:
    """A running daemon."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def instance(self) -> dict[str, Any]:
        """The one instance as /api/v1/status shows it."""
        status = httpx.get(f"{self.url}/api/v1/status", timeout=10.0, trust_env=False).json()
        found: dict[str, Any] = status["instances"][0]
        return found

    def wait_for(self, regime: str, limit_s: float = 60.0) -> dict[str, Any]:
        """Wait until the instance is in this regime, and return it."""
        wait_until(
            lambda: self.instance()["regime"] == regime, limit_s, lambda: f"no {regime}: {self.describe()}"
        )
        return self.instance()

    def describe(self) -> str:
        """What it does and what it said, for a failure's message."""
        return f"{json.dumps(self.instance())[:1500]}\n{self.log.read_text()[-3000:]}"


def wait_until(done: Callable[[], bool], limit_s: float, otherwise: Callable[[], str]) -> None:
    """Poll `done` until it holds; AssertionError with `otherwise()` when it does not in time."""
    deadline_s = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline_s, otherwise()
        time.sleep(0.05)


@contextmanager
def daemon(
    folder: Path, url: str, gpu: str, model: Path, environment: dict[str, str], more: str = ""
) -> Iterator[DaemonProcess]:
    """`kvwatt run` with a guard of its own; told to stop at the end, if it still runs.

    `more`: further sections of the configuration.
    """
    (folder / "state").mkdir(parents=True)
    config, log = folder / "kvwatt.toml", folder / "daemon.log"
    config.write_text(
        CONFIG.format(
            folder=folder,
            lease_s=LEASE_S,
            model=model,
            ttft_s=TTFT_LIMIT_S,
            tbt_s=TBT_LIMIT_S,
            quantile=QUANTILE,
            url=url,
            gpu=gpu,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_BATCHED_TOKENS,
        )
        + more
    )
    command = [sys.executable, "-m", "kvwattd", "run", "--config", str(config)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        yield DaemonProcess(process, _api_url(process, log), log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _api_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address it says it serves on."""
    address = re.compile(r"http://127\.0\.0\.1:\d+")
    wait_until(
        lambda: process.poll() is not None or address.search(log.read_text()) is not None,
        START_LIMIT_S,
        lambda: f"the daemon says nothing: {log.read_text()}",
    )
    found = address.search(log.read_text())
    assert found is not None, f"the daemon did not start: {log.read_text()}"
    return found.group()
