"""The daemon as a user starts it: `python -m kvwattd run --config FILE`, looked at from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from wrapped_daemon import TASKS_ENV

PATIENCE_S = 90.0
STOP_LIMIT_S = 90.0
CALL_TIMEOUT_S = 30.0
TOKEN = "a token that only tests use"
_API = re.compile(r"REST and metrics at (http://\S+)")
_GUARD = re.compile(r"guard: started as process (\d+)")


def eventually(holds: Callable[[], bool], what: Callable[[], str], limit_s: float = PATIENCE_S) -> None:
    """Wait until it holds; fails with `what()` only after a time that no working system needs."""
    until_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until_s, f"not within {limit_s:g} s: {what()}"
        time.sleep(0.02)


class DaemonProcess:
    """One daemon at a time in a folder of its own; `configuration` is TOML with {folder} to be filled in."""

    def __init__(
        self,
        folder: Path,
        configuration: str,
        environment: Mapping[str, str],
        program: Sequence[str] = ("-m", "kvwattd"),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config = folder / "kvwatt.toml"
        self.config.write_text(configuration.replace("{folder}", str(folder)), encoding="utf-8")
        self.environment = {**os.environ, **environment}
        self._program = program
        self._log = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        # Kept open: a daemon that may open no descriptor cannot take another connection.
        self._http = httpx.Client(timeout=CALL_TIMEOUT_S, trust_env=False)
        self.url = ""

    def start(self) -> None:
        """Start it and wait until its API is bound."""
        before = len(self.log())
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, *self._program, "run", "--config", str(self.config)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        eventually(lambda: bool(_API.search(self.log()[before:])) or not self.alive, self.log)
        found = _API.search(self.log()[before:])
        assert found is not None, self.log()
        self.url = found[1]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def guard_pid(self) -> int:
        """The child guard that was started last."""
        found = _GUARD.findall(self.log())
        assert found, self.log()
        return int(found[-1])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def tasks(self) -> int:
        """How many asyncio tasks it has; only of a wrapped daemon."""
        told = Path(self.environment[TASKS_ENV])
        told.unlink(missing_ok=True)
        self.signal(signal.SIGUSR2)
        eventually(lambda: told.exists() and bool(told.read_text()), self.log)
        return int(told.read_text())

    def hang_up(self) -> None:
        """SIGHUP: read the configuration again."""
        self.signal(signal.SIGHUP)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.terminate()
        return self.process.wait(STOP_LIMIT_S)

    def close(self) -> None:
        """End it whatever state it is in; a child guard resets its GPUs and follows."""
        self._http.close()
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Everything that daemon and guard wrote so far."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def reachable(self) -> bool:
        """Whether anybody answers at all."""
        try:
            self.get("/metrics")
        except httpx.HTTPError:
            return False
        return True

    def get(self, path: str) -> httpx.Response:
        try:
            return self._http.get(self.url + path)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            # A kept connection may be closed by the server at the moment at which it is used again.
            return self._http.get(self.url + path)

    def put(self, path: str, body: object, token: str | None = TOKEN) -> httpx.Response:
        return self._http.put(self.url + path, json=body, headers=_bearer(token))

    def delete(self, path: str) -> httpx.Response:
        return self._http.delete(self.url + path, headers=_bearer(TOKEN))

    def status(self) -> dict[str, Any]:
        """/api/v1/status."""
        found: dict[str, Any] = self.get("/api/v1/status").raise_for_status().json()
        return found

    def instance(self) -> dict[str, Any]:
        """The first instance as /api/v1/status shows it."""
        found: dict[str, Any] = self.status()["instances"][0]
        return found

    def decisions(self) -> list[dict[str, Any]]:
        """The latest decisions, newest first."""
        found: list[dict[str, Any]] = self.get("/api/v1/decisions").raise_for_status().json()
        return found

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Sample name -> its label sets and values."""
        page: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.get("/metrics").raise_for_status().text):
            for sample in family.samples:
                page.setdefault(sample.name, []).append((sample.labels, sample.value))
        return page

    def metric(self, name: str, **labels: str) -> float:
        """The one sample with these labels; 0 where there is none yet."""
        found = [v for given, v in self.metrics().get(name, []) if labels.items() <= given.items()]
        assert len(found) <= 1, (name, labels, found)
        return found[0] if found else 0.0

    def wait_for(self, regime: str, limit_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until the instance is in this regime, and return it."""
        seen: list[dict[str, Any]] = []

        def reached() -> bool:
            seen[:] = [self.instance()]
            return bool(seen[0]["regime"] == regime)

        eventually(reached, lambda: f"regime {regime}\n{self.describe()}", limit_s)
        return seen[0]

    def describe(self) -> str:
        """What it does and what it said, for a failure's message."""
        doing = self.get("/api/v1/status").text if self.alive else "it has ended"
        return f"{doing[:2500]}\n{self.log()[-4000:]}"


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
