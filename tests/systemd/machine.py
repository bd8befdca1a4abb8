"""A real systemd as the first process of namespaces of its own. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

BOOT = Path(__file__).with_name("boot.sh")
PATIENCE_S = 90.0
UNSHARE = ("unshare", "--fork", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net", "--kill-child")


class Machine:
    """Boots on entering; raises RuntimeError where that cannot be done here."""

    def __init__(self) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="kvwatt-machine-"))
        self._console = self._place.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def __enter__(self) -> Machine:
        command = [*UNSHARE, "/bin/sh", str(BOOT), str(self._place), sys.prefix, sys.base_prefix]
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(command, stdout=console, stderr=console)
        try:
            self._wait_booted()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(90)
        shutil.rmtree(self._place, ignore_errors=True)
        self._console.unlink(missing_ok=True)

    def inside(self, path: str) -> Path:
        """A path of the machine, from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--net", *command],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, **(env or {})},
            cwd="/",
        )

    def systemctl(self, *arguments: str) -> str:
        done = self.run("systemctl", *arguments)
        if done.returncode != 0:
            raise RuntimeError(f"systemctl {' '.join(arguments)}: {done.stderr}{self.console()}")
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def _wait_booted(self) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s and self._process.poll() is None:
            found = children.read_text().split()
            if found:
                self.pid = int(found[0])
                if self.run("systemctl", "is-active", "basic.target").stdout.strip() == "active":
                    return
            time.sleep(0.1)
        raise RuntimeError(f"systemd did not boot: {self.console()[-2000:]}")


def eventually(holds: Callable[[], bool], limit_s: float, what: Callable[[], str]) -> float:
    """Seconds until it holds; fails after `limit_s`."""
    began_s = time.monotonic()
    while not holds():
        assert time.monotonic() - began_s < limit_s, what()
        time.sleep(0.02)
    return time.monotonic() - began_s
