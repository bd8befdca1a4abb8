"""HAProxy in front of a simulated pool, where there is one: as deploy/haproxy/haproxy.cfg, in small."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kvwatt_sim.demo.model import cache_dir

STOP_S = 5.0
_CONFIG = """\
global
    stats socket {socket} mode 600 level admin
    stats timeout 30s
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout server 120s
    timeout client 120s
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
    option httpchk GET /health
    default-server check inter 300ms fall 2 rise 1 disabled
{servers}
"""


@dataclass(frozen=True, slots=True)
class Haproxy:
    """A running one: where requests go, and where kvwatt speaks to it."""

    url: str
    socket: Path


def find() -> tuple[str, dict[str, str]] | None:
    """The program and what its environment needs; None where there is none.

    Looked for on the usual paths, and where the tests unpack Debian's package.
    """
    installed = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if installed:
        return installed, {}
    root = cache_dir() / "debian-haproxy"
    program = root / "usr" / "sbin" / "haproxy"
    if not program.is_file():
        return None
    return str(program), {"LD_LIBRARY_PATH": ":".join(str(path) for path in root.glob("usr/lib/*-linux-gnu"))}


def start(stack: ExitStack, folder: Path, servers: Mapping[str, int], port: int) -> Haproxy | None:
    """Start it, every server disabled until kvwatt admits it; None where there is none or it does not run."""
    found = find()
    if found is None:
        return None
    program, environment = found
    socket, config = folder / "haproxy.sock", folder / "haproxy.cfg"
    rows = "\n".join(f"    server {name} 127.0.0.1:{at}" for name, at in servers.items())
    config.write_text(_CONFIG.format(socket=socket, port=port, servers=rows), encoding="utf-8")
    log = stack.enter_context((folder / "haproxy.log").open("wb"))
    process = subprocess.Popen(
        [program, "-db", "-f", str(config)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    stack.callback(_stop, process)
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        return Haproxy(f"http://127.0.0.1:{port}", socket)
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
