"""Bounds on what anybody may ask for: the size of a body, the rate of writes."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 64 * 1024


class BodyLimit:
    """ASGI middleware that answers 413 instead of reading on.

    Bodies are read before the token is looked at, so anybody may send one.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self._max_bytes

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                # Raised inside the handler that reads the body, hence answered like any other error.
                raise HTTPException(413, f"Body too large: at most {self._max_bytes} bytes are accepted")
            return message

        await self._app(scope, bounded, send)


class RateLimit:
    """A bucket per key that holds a minute's worth and fills evenly (token bucket).

    Keys are names of tokens and one for strangers: their number is bounded.
    """

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}  # what is left, and as of when

    def wait_s(self, key: str) -> float:
        """Take one; 0 if there was one to take, else how long until there is."""
        now_s, rate = self._now(), self._per_minute / 60
        left, as_of_s = self._buckets.get(key, (float(self._per_minute), now_s))
        left = min(left + (now_s - as_of_s) * rate, float(self._per_minute))
        taken = left >= 1
        self._buckets[key] = (left - taken, now_s)
        return 0.0 if taken else (1 - left) / rate
