"""Sends datagrams to whoever listens, and never waits.

The kernel queues few of them (net.unix.max_dgram_qlen, often 10): on a busy host the listener is late for
more. What finds the queue full is kept, up to a limit, and goes out before what comes later.
"""

from __future__ import annotations

import socket
from collections import deque

RETRY_S = 1.0
KEPT = 256  # datagrams, of about 100 bytes each
FLUSHED_AT_ONCE = 16  # so that no step pays for a long stall


class Sender:
    """A connected datagram socket that looks for its listener again once a second. Time is passed in."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._retry_at_s = 0.0
        self._kept: deque[bytes] = deque()
        self.dropped = 0

    def listening(self, now_s: float) -> bool:
        """Whether sending is worth a try; without a listener this costs one comparison."""
        if self._socket is None and now_s >= self._retry_at_s:
            self._connect(now_s)
        return self._socket is not None

    def send(self, datagram: bytes | bytearray, now_s: float) -> bool:
        """True when it was taken, or will go out before the next one."""
        self.flush(now_s)
        if self._socket is None or len(self._kept) >= KEPT:
            self.dropped += 1
            return False
        self._kept.append(bytes(datagram))
        self.flush(now_s)
        return self._socket is not None

    def flush(self, now_s: float) -> None:
        """Send what was kept, as far as the queue takes it."""
        if self._socket is None:
            return
        try:
            for _ in range(min(len(self._kept), FLUSHED_AT_ONCE)):
                self._socket.send(self._kept[0])
                self._kept.popleft()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            self._retry_at_s = now_s + RETRY_S

    def close(self) -> None:
        """Let go of the listener."""
        self.dropped += len(self._kept)
        self._kept.clear()
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
