"""Hands the tokens of one API request from the engine loop to the task that writes its HTTP answer."""

from __future__ import annotations

import asyncio
from typing import NamedTuple


class Delivery(NamedTuple):
    """One token of a choice, the last one with its finish reason. Aborts carry no token."""

    choice: int
    finish_reason: str | None
    tokens: int = 1


class Ticket:
    """A mailbox: the loop puts, one task takes everything that came since it last looked."""

    def __init__(self, choices: int, stream: bool) -> None:
        self.open_choices = choices
        self.stream = stream
        self._pending: list[Delivery] = []
        self._arrived = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        """Without streaming only the end of a choice wakes the reader."""
        self._pending.append(delivery)
        if delivery.finish_reason is not None:
            self.open_choices -= 1
        if self.stream or self.open_choices == 0:
            self._arrived.set()

    async def take(self) -> list[Delivery]:
        """Deliveries in order; waits for at least one."""
        await self._arrived.wait()
        self._arrived.clear()
        taken, self._pending = self._pending, []
        return taken
