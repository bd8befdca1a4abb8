"""docs/first-run.md, word for word: every command of the page in its order, against the simulated plant.

Real are the daemon, the guard, every command, HTTP, NVML calls, the ledger; simulated are the GPU behind
libnvidia-ml, the vLLM server and systemctl (`stub_systemctl`). Only the page's first block, paths and
addresses, is replaced, and the day in shadow mode takes seconds.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvwatt_sim.loadgen import LoadGenerator, LoadOptions
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import SetterCall
from kvwatt_sim.server.launch import SimServer
from kvwatt_sim.traces import TraceRequest
from kvwattd.ledger.reading import LedgerUnreadableError, read

PAGE = Path(__file__).parents[2] / "docs" / "first-run.md"
STUB = Path(__file__).with_name("stub_systemctl.py")
SEATS, BUDGET = 4, 512
SHADOW_S = 5.0  # that the ledger must have of it
LIMIT_S = 240.0
CONFIG = f"""
[daemon]
state_dir = "{{folder}}/state"
[api]
port = 0
socket = "{{folder}}/api.sock"
token_file = "{{folder}}/tokens.toml"
[guard]
socket = "{{folder}}/guard.sock"
[model]
path = "{{folder}}/model"
refit_s = 0.0
[ledger]
interval_s = 2.0
[slo.ttft]
limit_s = 2.0
[slo.tbt]
limit_s = 0.1
[[instance]]
name = "chat"
url = "{{url}}"
gpus = ["0"]
max_num_seqs = {SEATS}
max_num_batched_tokens = {BUDGET}
"""
GUARD = """
socket = "{folder}/guard.sock"
state_file = "{folder}/guard.json"
lock_dir = "{folder}/locks"
gpus = ["{uuid}"]
"""
PREAMBLE = f"""
VLLM={{url}} GPU=0 MODEL={{folder}}/model TOKENS={{folder}}/tokens.toml OWNER=$(id -un)
PROFILE="--minutes 2 --target-error 0.3 --clocks 3 --window 0.2"
PROFILE="$PROFILE --max-num-seqs {SEATS} --max-num-batched-tokens {BUDGET}"
"""


def blocks(page: str) -> list[tuple[str, str]]:
    """Heading and text of every block of commands, in order."""
    parts = re.split(r"^## ", page, flags=re.MULTILINE)
    return [
        (part.splitlines()[0], found)
        for part in parts
        for found in re.findall(r"^```sh\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)
    ]


@dataclass
class Operator:
    """Runs a block of the page as an operator does, after the variables of the first."""

    folder: Path
    server: SimServer

    def __post_init__(self) -> None:
        words = {"folder": self.folder, "url": self.server.base_url, "uuid": self.server.uuids[0]}
        (self.folder / "kvwatt.toml").write_text(CONFIG.format(**words))
        (self.folder / "guard.toml").write_text(GUARD.format(**words))
        (self.folder / "session").write_text(PREAMBLE.format(**words))
        (self.folder / "bin").mkdir()
        for name, program in (("kvwatt", "-m kvwattd"), ("systemctl", str(STUB))):
            path = self.folder / "bin" / name
            path.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
            path.chmod(0o755)
        self.env = {
            **os.environ,
            **self.server.env(),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FIRST_RUN_FOLDER": str(self.folder),
            "KVWATT_CONFIG": str(self.folder / "kvwatt.toml"),
            "KVWATT_GUARD__SOCKET": str(self.folder / "guard.sock"),
            "KVWATT_URL": f"unix:{self.folder / 'api.sock'}",
            "KVWATT_TOKEN_FILE": str(self.folder / "operator.token"),
            "COLUMNS": "200",
        }

    async def run(self, heading: str, commands: str) -> str:
        """What a block says; it must end with 0."""
        script = f"set -euo pipefail\n. ./session\n{commands}"
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            script,
            cwd=self.folder,
            env=self.env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
        text = out.decode()
        assert process.returncode == 0, f"{heading}:\n{text}\n{self.logs()}"
        return text

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))

    def setters(self) -> list[SetterCall]:
        """Every call so far that would set something on the GPU."""
        with SimGpus.open(self.server.state) as gpus:
            return list(gpus.setter_log())

    def lock_mhz(self) -> tuple[int, int] | None:
        with SimGpus.open(self.server.state) as gpus:
            return gpus.lock_mhz(0)

    def shadowed_s(self) -> float:
        """Of the ledger."""
        with suppress(LedgerUnreadableError):
            rows = read(self.folder / "state" / "ledger.db", 0, 2**62)
            return sum(row.regimes.get("shadow", 0) for row in rows) / 1e3
        return 0.0

    def stop(self) -> None:
        """End both services, the daemon first."""
        for unit in ("kvwatt", "kvwatt-guard"):
            with suppress(FileNotFoundError, ProcessLookupError):
                pid = int((self.folder / f"{unit}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                until(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


def until(holds: Callable[[], bool], limit_s: float = 90.0) -> None:
    end_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.05)


@asynccontextmanager
async def traffic(url: str) -> AsyncIterator[None]:
    """Short requests, some in a second, as long as the block lasts."""
    requests = [TraceRequest(0.4 * i, 120, 20 + i % 30) for i in range(1000)]
    task = asyncio.create_task(LoadGenerator(url, requests, LoadOptions()).run(time.monotonic() + 0.1))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def told_what_would_have_been(operator: Operator, block: tuple[str, str]) -> None:
    """Until it tells what would have been: in FAILSAFE, as after a stall, the status tells that instead."""
    wanted = ("would set", "would have saved", "promises that would have been kept")
    end_s = time.monotonic() + LIMIT_S
    while True:
        told = await operator.run(*block)
        if all(words in told for words in wanted):
            return
        assert time.monotonic() < end_s, told


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    with SimServer(card="l20", max_num_seqs=SEATS, max_num_batched_tokens=BUDGET) as server:
        made = Operator(tmp_path, server)
        try:
            yield made
        finally:
            made.stop()


async def test_the_page_works_word_for_word(operator: Operator) -> None:
    """From doctor to active and back; nothing is set in shadow mode, and what is set is undone."""
    first, *steps = blocks(PAGE.read_text())
    assert first[0] == "# First run" and "VLLM=" in first[1]
    look, measure, watch, read_it, act, back = steps
    assert "0 problem(s)" in await operator.run(*look)
    await operator.run(*measure)
    before = operator.setters()
    assert before and operator.lock_mhz() is None
    async with traffic(operator.server.base_url):
        assert "mode shadow" in await operator.run(*watch)
        await asyncio.to_thread(until, lambda: operator.shadowed_s() >= SHADOW_S)
        await told_what_would_have_been(operator, read_it)
        assert operator.setters() == before
        assert "mode shadow -> active" in await operator.run(*act)
        await asyncio.to_thread(until, lambda: operator.lock_mhz() is not None)
        assert "mode active -> shadow" in await operator.run(*back)
        await asyncio.to_thread(until, lambda: operator.lock_mhz() is None)
