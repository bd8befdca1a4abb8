"""The daemon's own guard: what keeps it from being started is told once, and does not end the daemon."""

from __future__ import annotations

import asyncio
import errno
import logging
import os

import pytest

from kvwattd import guard_child
from kvwattd.config import Config


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
    one = {"name": "a", "url": "http://127.0.0.1:8000", "gpus": ["0"]}
    config = Config.model_validate({"instance": [one], "slo": {"ttft": {"limit_s": 3.0}}})
    child = guard_child.GuardChild(config)
    await child.allow(["GPU-0"])
    with caplog.at_level(logging.ERROR):
        running = asyncio.create_task(child.run())
        while tries < 3:
            assert not running.done(), running
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert caplog.text.count("cannot be started") == 1 and "Too many open files" in caplog.text
