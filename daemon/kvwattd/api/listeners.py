"""Listening sockets of the API: TCP, and a unix socket with mode and group of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

BACKLOG = 64


class ApiUnavailable(Exception):  # noqa: N818 (reads as the state it tells of)
    """The API cannot be served here; the message names key, value and what to do."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM; the certificate may be followed by its chain."""

    cert: Path
    key: Path

    def check(self) -> None:
        """Try the files on a context that nobody uses. Raises ApiUnavailable."""
        self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def load(self, context: ssl.SSLContext) -> None:
        """Let new connections use the files as they are now. Raises ApiUnavailable."""
        try:
            # Without a password callback OpenSSL would ask on the terminal.
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ApiUnavailable(
                f"api.tls_cert {self.cert}, api.tls_key {self.key}: {error}; accepted: a certificate and its "
                "key without password, both PEM and readable by the daemon"
            ) from error


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ApiUnavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        accepted = "a local address and a free port at api.host and api.port (0 takes any free port)"
        raise ApiUnavailable(f"api {host}:{port}: {error}; accepted: {accepted}") from error
    listener.setblocking(False)
    # Accepted sockets inherit it; asyncio sets it only on sockets made with an explicit protocol, and
    # without it each answer waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def bind_unix(path: Path, mode: int, group: str | None) -> socket.socket:
    """A listening unix socket; nobody can connect before mode and group are set. Raises ApiUnavailable."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        listener.bind(str(path))
        if group is not None:
            shutil.chown(path, group=group)
        path.chmod(mode)
        listener.listen(BACKLOG)
    except (OSError, LookupError) as error:
        listener.close()
        accepted = "a path in an existing folder that the daemon may write, and a group it belongs to"
        raise ApiUnavailable(f"api.socket {path}: {error}; accepted: {accepted}") from error
    listener.setblocking(False)
    return listener


def unlink_socket(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _clear(path: Path) -> None:
    """Take away a socket that a killed daemon left; anything else stays. Raises OSError."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(17, "something else than a socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise FileExistsError(17, "another process listens there; stop it or choose another path")
