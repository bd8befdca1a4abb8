"""What a loop has begun comes to its end: before a server of a test goes, and after it has gone.

A connection that was accepted in the last moment has no handler yet, and a transport that was closed ends in
a later turn. One that is left over is complained of whenever it is collected, in whatever test that happens.
"""

from __future__ import annotations

import asyncio

TURNS = 10  # an accepted connection takes four to its handler


async def turns() -> None:
    """Some turns of the loop; no time passes."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
