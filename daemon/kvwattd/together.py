"""Several waits at once, without losing a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def together(*waits: Awaitable[T]) -> list[T]:
    """All results in order, or what the first of them that failed raised, once all have ended.

    `asyncio.gather` alone raises the failure also where it is cancelled at the same moment: whoever goes on
    after a failure then runs for ever, and the daemon with it.
    """
    results = await asyncio.gather(*waits, return_exceptions=True)
    found = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        found.append(result)
    return found
