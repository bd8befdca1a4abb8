"""The real daemon as a process of its own: started by `with`, stopped on the way out."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kvwatt_sim.demo.settings import DemoError

STOP_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 15
_API = re.compile(r"REST and metrics at (http://\S+)")


class DaemonProcess:
    """`python -m kvwattd run`; its guard and log go with it. `env` is added to our own environment."""

    def __init__(self, env: Mapping[str, str], configuration: str, folder: Path) -> None:
        self._env = env
        self._config = folder / "kvwatt.toml"
        self._log_path = folder / "kvwatt.log"
        self._config.write_text(configuration, encoding="utf-8")
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._read_from = 0
        self.url = ""

    @property
    def pid(self) -> int:
        """Process id; raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("the daemon has not been started")
        return self._process.pid

    def __enter__(self) -> Self:
        self._log = self._log_path.open("ab")
        self._read_from, self.url = self._log.tell(), ""
        # A session of its own: a Ctrl-C at the terminal is for the demo, which then stops things in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvwattd", "run", "--config", str(self._config)],
            env={**os.environ, **self._env},
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

    def kill(self) -> None:
        """SIGKILL: it gets no chance to put anything in order."""
        if self._process is not None:
            self._process.kill()
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

    def check(self) -> None:
        """Raises DemoError when the daemon has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise DemoError(f"the daemon ended with status {self._process.returncode}\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines that the daemon wrote."""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def log(self) -> str:
        """All that it wrote."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def find_url(self) -> str:
        """Base URL of its API; empty before it is bound."""
        if not self.url:
            found = _API.search(self.log()[self._read_from :])
            self.url = found[1] if found is not None else ""
        return self.url

    def wait_url(self, timeout_s: float) -> str:
        """The same, waited for. Raises DemoError when it ends or takes too long."""
        deadline_s = time.monotonic() + timeout_s
        while not self.find_url():
            self.check()
            if time.monotonic() > deadline_s:
                raise DemoError(f"the daemon does not answer after {timeout_s:.0f} s\n{self.log_tail()}")
            time.sleep(0.05)
        return self.url
