"""A real HAProxy for tests: from PATH, or Debian's package unpacked into the cache folder without root."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

# Tests and benches import this file by its folder; what it needs itself stands in another one.
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

import debian_packages  # see above

from kvwatt_sim.ports import free_ports

PACKAGES = ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")
PATIENCE_S = 90.0

CONFIG = """\
global
    stats socket {socket} mode 600 level admin
    stats timeout 30s
    nbthread {threads}
defaults
    mode http
    timeout connect 10s
    timeout check 10s
    timeout server 60s
    timeout client 60s
    timeout queue 30s
    retry-on conn-failure
    retries 2
    option redispatch 1
    option http-server-close
frontend inference
    bind 127.0.0.1:{port}
    default_backend vllm
backend vllm
    balance leastconn
    option httpchk
    http-check connect
    http-check send meth GET uri /health
    http-check expect status 200
    http-check connect
    http-check send meth GET uri /is_sleeping
    http-check expect ! rstring "is_sleeping\\": ?true"
    default-server check inter {check} fall 2 rise 1{extra}
{servers}
"""


class NoHaproxyError(Exception):
    """Neither installed nor to be had; the message says why."""


def find() -> tuple[str, dict[str, str]]:
    """The program and the environment it needs. Raises NoHaproxyError."""
    try:
        program, environment = debian_packages.find("haproxy", PACKAGES)
    except debian_packages.NoProgramError as error:
        raise NoHaproxyError(str(error)) from error
    ran = subprocess.run(
        [program, "-v"], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        raise NoHaproxyError(f"haproxy does not run: {ran.stderr.strip()[:300]}")
    return program, environment


class Haproxy:
    """One HAProxy; `servers`: name -> port. With `master` it runs master and worker, and can be reloaded."""

    def __init__(
        self,
        folder: Path,
        servers: Mapping[str, int],
        *,
        disabled: bool = True,
        threads: int = 1,
        check: str = "200ms",
        server_options: str = "",
        master: bool = False,
    ) -> None:
        self._program, self._environment = find()
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "ha.sock"
        self.master_socket = folder / "hamaster.sock"
        (self.port,) = free_ports(1)
        self._master = master
        self._log = folder / "haproxy.log"
        self._config = folder / "haproxy.cfg"
        lines = "\n".join(f"    server {n} 127.0.0.1:{port} {server_options}" for n, port in servers.items())
        self._config.write_text(
            CONFIG.format(
                socket=self.socket,
                port=self.port,
                threads=threads,
                check=check,
                servers=lines,
                extra=" disabled" if disabled else "",
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        mode = ["-W", "-S", str(self.master_socket)] if self._master else ["-db"]
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [self._program, *mode, "-f", str(self._config)],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        until_s = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until_s:
                raise AssertionError(f"HAProxy did not start: {self.log()}")
            time.sleep(0.02)

    def reload(self) -> None:
        """A new worker beside the old one, which ends its connections."""
        assert self._process is not None
        before = self.command("show info")
        self._process.send_signal(signal.SIGUSR2)
        until_s = time.monotonic() + PATIENCE_S
        while (now := self._safe_info()) is None or _pid(now) == _pid(before):
            assert time.monotonic() < until_s, f"no new worker: {self.log()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: the runtime state is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def command(self, text: str) -> str:
        """What an administrator types into the runtime socket."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(PATIENCE_S)
            link.connect(str(self.socket))
            link.sendall(text.encode() + b"\n")
            data = b""
            while chunk := link.recv(65536):
                data += chunk
        return data.decode()

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def _safe_info(self) -> str | None:
        try:
            return self.command("show info")
        except OSError:
            return None

    def _answers(self) -> bool:
        if not self._safe_info() or not self._master:
            return bool(self._safe_info())
        with socket.socket(socket.AF_UNIX) as link:
            return link.connect_ex(str(self.master_socket)) == 0


def _pid(info: str) -> str:
    return next(line for line in info.splitlines() if line.startswith("Pid:"))
