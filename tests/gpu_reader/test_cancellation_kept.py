"""A cancellation that meets a failure in the same moment is not lost: the daemon ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.protocol import Code
from kvwattd.telemetry.gpu import GpuReader
from kvwattd.together import together


async def cancelled_as_one_fails(wait: Callable[[Awaitable[Any], Awaitable[Any]], Awaitable[object]]) -> bool:
    """Whether a task is cancelled that waits for one that fails just then, and for one that never ends."""
    loop = asyncio.get_running_loop()
    fails, never = loop.create_future(), loop.create_future()

    async def go_on() -> None:
        try:
            await wait(fails, never)
        except Exception as error:
            print(f"went on after {error}")

    task = asyncio.create_task(go_on())
    for _ in range(3):
        await asyncio.sleep(0)
    fails.set_exception(NvmlCallError(Code.NVML, "no such GPU"))
    await asyncio.sleep(0)  # it has failed, and nobody has been told yet
    task.cancel()
    await asyncio.wait([task], timeout=60.0)
    return task.cancelled()


async def test_together_keeps_a_cancellation_and_raises_a_failure() -> None:
    async def child(of: Awaitable[Any]) -> object:
        return await of

    assert await cancelled_as_one_fails(lambda *both: together(*map(child, both)))
    assert not await cancelled_as_one_fails(lambda *both: asyncio.gather(*map(child, both)))
    assert await together(asyncio.sleep(0, 1), asyncio.sleep(0, 2)) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        await together(asyncio.sleep(0, 1), asyncio.to_thread(lambda: 1 // 0))


async def test_looking_gpus_up_ends_when_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a look-up fails just then: it would be tried again for ever."""
    reader = GpuReader(["0", "1"], 1.0)

    async def start(*both: Awaitable[Any]) -> object:
        left = iter(both)

        async def call(*_: object) -> object:
            return await next(left)

        monkeypatch.setattr(reader, "_call", call)
        return await reader.start()

    assert await cancelled_as_one_fails(start)
    reader.close()
