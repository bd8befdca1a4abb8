"""What goes on for long is told when it begins, not at every look."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path
from unittest.mock import Mock

import pytest

from kvwatt.state import GpuSample
from kvwattd.guard.protocol import GuardError
from kvwattd.guard.recorder import Recorder
from kvwattd.guard.statefile import StateFile
from kvwattd.holdbacks import QUIET_S, HoldBacks
from kvwattd.shortages import QUIET_S as SHORT_QUIET_S
from kvwattd.shortages import Shortages

POWER_CAP, IDLE = 0x4, 0x1


def sample(observed_s: float, reasons: int, uuid: str = "GPU-1") -> GpuSample:
    return GpuSample(observed_s, uuid, 1200, 150.0, 0.0, 60.0, 1.0, reasons)


def test_a_power_cap_that_comes_and_goes_is_one_episode() -> None:
    """It is told of each GPU when it begins, and again only after it was gone for a minute."""
    holdbacks = HoldBacks()
    told = [holdbacks.begun([sample(t_s, POWER_CAP if t_s % 2 else IDLE)]) for t_s in range(100)]
    assert [line for lines in told for line in lines] == ["GPU GPU-1 held back by: power_cap"]
    assert holdbacks.begun([sample(100.0, POWER_CAP, "GPU-2")])
    assert holdbacks.begun([sample(100.0 + QUIET_S + 1, POWER_CAP)])
    assert not holdbacks.begun([sample(200.0, IDLE), sample(200.0, 0)])


async def test_a_record_that_cannot_be_written_is_told_once_and_tried_at_its_pace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk costs one line and an attempt a second, and is over when it is over."""
    folder = tmp_path / "gone"
    recorder = Recorder(StateFile(folder / "state.json"), None)
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            with pytest.raises(GuardError):
                await recorder.persist(lambda: frozenset({"GPU-1"}))
    assert [r.message for r in caplog.records if "without a record" in r.message] == [caplog.messages[0]]
    assert not recorder.needs_rewrite(loop.time()) and recorder.needs_rewrite(loop.time() + 2.0)
    folder.mkdir()
    await recorder.persist(lambda: frozenset({"GPU-1"}))
    assert not recorder.needs_rewrite(loop.time() + 2.0)
    recorder.close()


def test_connections_that_cannot_be_taken_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever else an event loop complains of is left to its own handler, and loses nothing."""
    loop, shortages = Mock(spec=asyncio.AbstractEventLoop), Shortages()
    short = {"message": "accept", "exception": OSError(errno.EMFILE, "none left"), "socket": object()}
    for now_s in (0.0, 1.0, SHORT_QUIET_S - 1.0, SHORT_QUIET_S):
        loop.time.return_value = now_s
        shortages(loop, short)
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    others: list[dict[str, object]] = [
        {"message": "a task failed", "exception": OSError(errno.EMFILE, "none left")},
        {"message": "accept", "exception": OSError(errno.EBADF, "closed"), "socket": object()},
        {"message": "no exception at all"},
    ]
    for context in others:
        shortages(loop, context)
    assert [call.args[0] for call in loop.default_exception_handler.call_args_list] == others
    assert len(caplog.records) == 2
