"""What an engine says of itself: up, asleep, and how many requests it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Look:
    """One look at one engine. None: it did not say, or not in time.

    Args:
        healthy: `/health` answered 200 within the deadline.
        asleep: what `/is_sleeping` said; False where the server has no such call (it cannot sleep over HTTP).
        running: requests in the batch, of all engines behind the server.
        waiting: requests in the queue, of all engines behind the server.
        kv_usage: use of the KV cache, 0..1, the fullest engine's.
        gone: nothing listens at the address (connection refused): surer than `not healthy`.
    """

    healthy: bool
    asleep: bool | None = None
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    gone: bool = False

    @property
    def serving(self) -> bool:
        """Up and awake for certain."""
        return self.healthy and self.asleep is False

    @property
    def quiet(self) -> bool:
        """Nothing runs and nothing waits, for certain."""
        return self.running == 0 and self.waiting == 0


class Probe(Protocol):
    """Looks at members by name. Never raises: what cannot be seen is a Look that says so."""

    async def look(self, member: str) -> Look:
        """Ask the engine, within the probe's own deadline."""

    async def warm_up(self, member: str) -> bool:
        """Put one small request through it; whether it was answered in full within the deadline."""

    async def close(self) -> None:
        """Close the connections."""
