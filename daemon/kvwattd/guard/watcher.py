"""Reads every GPU's clock back and acts on what it says: another program's clock, a clock not obeyed.

A GPU that another program sets is left to it, with an alarm, until that program's clock has not been seen for
`hold_off_s` or the operator says `resume`. A GPU that did not run at what was set goes to default, and
all that were set with it, and is tried again after `hold_off_s`, twice as long every time in a row.
"""

from __future__ import annotations

import asyncio
import logging

from kvwattd.guard.clocks import ClockKeeper
from kvwattd.guard.guarded_gpu import Alarm, GuardedGpu
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.obedience import Readback, Verdict
from kvwattd.guard.protocol import Code
from kvwattd.guard.worker import CallTimeoutError

log = logging.getLogger(__name__)

READ_PERIOD_S = 0.25
READ_DEADLINE_S = 1.0  # nothing waits for it
RELOAD_PAUSE_S = 2.0
OVERRULED_S = 120.0  # a daemon whose clock was refused tries again within a minute


class Watcher:
    """Call `due()` from the tick; it never waits."""

    def __init__(self, keeper: ClockKeeper, hold_off_s: float) -> None:
        self._keeper = keeper
        self._hold_off_s = hold_off_s
        self._due_s = 0.0
        self._reading: dict[str, asyncio.Task[None]] = {}
        self.yields = 0
        self.disobeyed = 0
        self.driver_reloads = 0

    def due(self, now_s: float) -> None:
        """End alarms whose time is over, and start the readings that are due."""
        for gpu in self._keeper.gpus:
            if gpu.alarm is not None and now_s >= gpu.alarm.until_s:
                self.resume(gpu, "its time is over")
        if now_s < self._due_s:
            return
        self._due_s = now_s + READ_PERIOD_S
        for gpu in self._keeper.gpus:
            task = self._reading.get(gpu.uuid)
            if task is None or task.done():
                self._reading[gpu.uuid] = asyncio.ensure_future(self._look(gpu))

    def overrule(self, gpu: GuardedGpu, why: str) -> None:
        """The operator's word: take the GPU although another program's clock is still on it."""
        gpu.overruled_until_s = asyncio.get_running_loop().time() + OVERRULED_S
        self.resume(gpu, why)

    def resume(self, gpu: GuardedGpu, why: str) -> None:
        """The GPU may be set again."""
        if gpu.alarm is not None:
            log.warning("GPU %s may be set again: %s", gpu.uuid, why)
            gpu.alarm = None

    async def close(self) -> None:
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)

    async def _look(self, gpu: GuardedGpu) -> None:
        order, resets = gpu.order, gpu.range_mhz
        try:
            seen = await gpu.reader.call(gpu.setter.read, READ_DEADLINE_S)
        except (CallTimeoutError, NvmlCallError):
            gpu.readback = None  # the daemon reads these GPUs too and tells why it cannot
            return
        gpu.readback = seen
        if (gpu.order, gpu.range_mhz) == (order, resets):  # else it is of another clock than is set now
            now_s = asyncio.get_running_loop().time()
            self._act(gpu, gpu.watch.observe(seen, now_s), seen, now_s)

    def _act(self, gpu: GuardedGpu, verdict: Verdict, seen: Readback, now_s: float) -> None:
        match verdict:
            case Verdict.OBEYED:
                gpu.disobeyed_in_row = 0
            case Verdict.FOREIGN if gpu.range_mhz is not None or now_s >= gpu.overruled_until_s:
                self._yield(gpu, seen, now_s)
            case Verdict.DISOBEYED:
                self._not_obeyed(gpu, seen, now_s)
            case Verdict.RELOADED if gpu.range_mhz is not None:
                self._reloaded(gpu, now_s)

    def _reloaded(self, gpu: GuardedGpu, now_s: float) -> None:
        text = f"GPU {gpu.uuid}: its energy counter began anew: the driver was reloaded, the lock is gone"
        self.driver_reloads += 1
        log.error("%s", text)
        gpu.alarm = Alarm(Code.GPU_LOST, text, now_s + RELOAD_PAUSE_S)
        self._keeper.undo_group(gpu)

    def _yield(self, gpu: GuardedGpu, seen: Readback, now_s: float) -> None:
        text = (
            f"GPU {gpu.uuid}: another program sets its clocks: {_told(gpu)}, but it runs at "
            f"{seen.clock_mhz} MHz; left alone until not seen for {self._hold_off_s:g} s, or `resume`"
        )
        first = gpu.alarm is None or gpu.alarm.code is not Code.YIELDED
        if first:
            self.yields += 1
            log.error("%s", text)
            gpu.alarm = Alarm(Code.YIELDED, text, now_s + self._hold_off_s)
        elif gpu.alarm is not None:
            gpu.alarm = Alarm(Code.YIELDED, gpu.alarm.text, now_s + self._hold_off_s)
        if gpu.range_mhz is not None:
            self._keeper.leave(gpu)

    def _not_obeyed(self, gpu: GuardedGpu, seen: Readback, now_s: float) -> None:
        hold_off_s = gpu.hold_off_s(self._hold_off_s)
        text = (
            f"GPU {gpu.uuid}: clock not obeyed: {_told(gpu)}, but it runs at {seen.clock_mhz} MHz "
            f"and the driver tells no reason; at driver default for {hold_off_s:g} s"
        )
        self.disobeyed += 1
        gpu.disobeyed_in_row += 1
        log.error("%s", text)
        gpu.alarm = Alarm(Code.DISOBEYED, text, now_s + hold_off_s)
        self._keeper.undo_group(gpu)


def _told(gpu: GuardedGpu) -> str:
    if gpu.range_mhz is None:
        return "nothing was set by this guard"
    return f"{gpu.range_mhz[0]}-{gpu.range_mhz[1]} MHz were set"
