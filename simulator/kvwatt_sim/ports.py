"""Ports for servers that must be told one, and may start to listen minutes later.

The kernel gives ports of its own range (net.ipv4.ip_local_port_range) to every socket that asks for any, also
while the server that was told one is not up yet; one from below that range is taken by nobody by chance.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOWEST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> tuple[int, ...]:
    """On 127.0.0.1; nobody listens there now, each another one. Raises OSError where there are too few."""
    first = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    candidates = range(LOWEST, first) if first >= LOWEST + 1000 else range(LOWEST, 65_536)
    found: list[int] = []
    for port in random.SystemRandom().sample(candidates, k=len(candidates)):
        if len(found) == count:
            break
        if _is_free(port):
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} free ports in {candidates}")
    return tuple(found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
