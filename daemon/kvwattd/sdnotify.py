"""systemd's notification protocol (sd_notify(3)), standard library only."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send one datagram such as `READY=1` or `STATUS=...`; False when not started by systemd.

    Raises OSError when a socket is named but cannot be reached.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # Linux abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.setblocking(False)  # a full queue must not hold the caller up
        channel.sendto(state.encode(), address)
    return True


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often to send `WATCHDOG=1`: half of WatchdogSec; None when no watchdog is meant for us."""
    pid = environ.get("WATCHDOG_PID", "")
    limit_us = environ.get("WATCHDOG_USEC", "")
    if not limit_us.isdigit() or int(limit_us) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(limit_us) / 2e6
