"""The daemon's own guard: what keeps it from being started is told once, and does not end the daemon."""

from __future__ import annotations

import asyncio
import errno
import logging
import os

import pytest

from kvwattd import guard_child
from kvwattd.config import Config


def config(**policy: int) -> Config:
    one = {"name": "a", "url": "http://127.0.0.1:8000", "gpus": ["0"]}
    return Config.model_validate({"instance": [one], "slo": {"ttft": {"limit_s": 3.0}}, "policy": policy})


class Spawned:
    """A guard that runs until it is stopped."""

    pid = 1

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        return 0

    async def stop(self, within_s: float = 0.0) -> int:
        self._ended.set()
        return 0

    @property
    def was_ended(self) -> bool:
        return self._ended.is_set()

    async def answers(self, within_s: float) -> bool:
        return True


@pytest.mark.parametrize("what", ["a GPU more", "other bounds", "a GPU less"])
async def test_what_changes_while_a_guard_starts_holds_for_it(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Two reloads in a row: the second came while the guard of the first was on its way."""
    starting, go_on = asyncio.Queue[tuple[tuple[str, ...], int]](), asyncio.Semaphore(0)

    async def slowly(socket: object, state: object, gpus: tuple[str, ...], **given: int) -> Spawned:
        starting.put_nowait((gpus, given["min_mhz"]))
        await go_on.acquire()
        return Spawned()

    monkeypatch.setattr(guard_child, "spawn_guard", slowly)
    monkeypatch.setattr(guard_child, "RESTART_PAUSE_S", 0.001)
    child = guard_child.GuardChild(config())
    await child.allow(["GPU-0"])
    running = asyncio.create_task(child.run())
    assert await starting.get() == (("GPU-0",), 1)
    match what:
        case "a GPU more":
            await child.allow(["GPU-0", "GPU-1"])
        case "other bounds":
            await child.configure(config(floor_mhz=900))
        case _:
            await child.allow([])
    go_on.release()
    if what == "a GPU less":  # which is not asked for any more, and needs no new guard
        for _ in range(100):
            await asyncio.sleep(0)
        assert starting.empty()
    else:
        wanted = (("GPU-0", "GPU-1"), 1) if what == "a GPU more" else (("GPU-0",), 900)
        assert await asyncio.wait_for(starting.get(), 60.0) == wanted
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_without_a_descriptor_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon could open nothing when the guard had died: it ended with it, before."""
    tries = 0

    async def refused(*args: object, **options: object) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(guard_child, "spawn_guard", refused)
    monkeypatch.setattr(guard_child, "RESTART_PAUSE_S", 0.001)
    child = guard_child.GuardChild(config())
    await child.allow(["GPU-0"])
    with caplog.at_level(logging.ERROR):
        running = asyncio.create_task(child.run())
        while tries < 3:
            assert not running.done(), running
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert caplog.text.count("cannot be started") == 1 and "Too many open files" in caplog.text


@pytest.mark.parametrize(
    ("answers", "ended"),
    [
        ((False, False, False), True),
        ((False, False, True, False, False, True), False),
        ((OSError(errno.EMFILE, "none left"),) * 9, False),
        ((False, OSError(errno.EMFILE, "none left"), False, OSError(errno.ENOMEM, "none left"), False), True),
    ],
)
async def test_a_guard_is_ended_for_its_own_silence_alone(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[bool | OSError, ...], ended: bool
) -> None:
    """Three missed answers in a row; a daemon that could not even ask has learned nothing of it."""
    given, asked_all = list(answers), asyncio.Event()

    class Asked(Spawned):
        async def answers(self, within_s: float) -> bool:
            if not given:
                asked_all.set()
                return True
            if isinstance(answer := given.pop(0), OSError):
                raise answer
            return answer

    guard = Asked()

    async def spawned(*args: object, **options: object) -> Spawned:
        return guard

    monkeypatch.setattr(guard_child, "spawn_guard", spawned)
    monkeypatch.setattr(guard_child, "WATCHDOG_PERIOD_S", 0.001)
    child = guard_child.GuardChild(config())
    await child.allow(["GPU-0"])
    running = asyncio.create_task(child.run())
    done, _ = await asyncio.wait(
        [asyncio.create_task(guard.wait()), asyncio.create_task(asked_all.wait())],
        timeout=60.0,
        return_when=asyncio.FIRST_COMPLETED,
    )
    assert done and guard.was_ended == ended
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
