"""Sends datagrams to whoever listens, and never waits: nobody there, or a full queue, means dropped."""

from __future__ import annotations

import socket

RETRY_S = 1.0


class Sender:
    """A connected datagram socket that looks for its listener again once a second. Time is passed in."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._retry_at_s = 0.0
        self.dropped = 0

    def listening(self, now_s: float) -> bool:
        """Whether sending is worth a try; without a listener this costs one comparison."""
        if self._socket is None and now_s >= self._retry_at_s:
            self._connect(now_s)
        return self._socket is not None

    def send(self, datagram: bytes | bytearray, now_s: float) -> bool:
        """True when it was taken."""
        if self._socket is None:
            self.dropped += 1
            return False
        try:
            self._socket.send(datagram)
        except BlockingIOError:
            self.dropped += 1
            return False
        except OSError:
            self.dropped += 1
            self.close()
            self._retry_at_s = now_s + RETRY_S
            return False
        return True

    def close(self) -> None:
        """Let go of the listener."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, now_s: float) -> None:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        found.setblocking(False)
        try:
            found.connect(self._path)
        except OSError:  # not there yet, or not for us
            found.close()
            self._retry_at_s = now_s + RETRY_S
        else:
            self._socket = found
