"""One GPU as the guard knows it: what we set on it, what is still to be undone, why it is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kvwattd.guard.obedience import EXTERNAL, ClockWatch, Readback, limited_by
from kvwattd.guard.protocol import ClockState, Code, GuardError, GuardGpu
from kvwattd.guard.worker import DeadlineWorker

RETRY_FIRST_S = 0.25
HOLD_OFF_MAX_RATIO = 10.0  # of the first hold-off
_ALARMED = {Code.YIELDED: ClockState.YIELDED, Code.DISOBEYED: ClockState.DISOBEYED}


class Setter(Protocol):
    """Blocking access to one GPU's clock lock; raises NvmlCallError."""

    def check(self, floor_mhz: int, target_mhz: int) -> None: ...
    def set_range(self, floor_mhz: int, target_mhz: int) -> None: ...
    def reset(self) -> None: ...
    def read(self) -> Readback: ...


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why a GPU is not set, and until when (monotonic seconds)."""

    code: Code
    text: str
    until_s: float


class GuardedGpu:
    """Two threads: one for what must keep its order, one for reading back, whose delay harms nobody."""

    def __init__(self, uuid: str, setter: Setter) -> None:
        self.uuid = uuid
        self.setter = setter
        self.worker = DeadlineWorker(f"nvml-{uuid}")
        self.reader = DeadlineWorker(f"readback-{uuid}")
        self.watch = ClockWatch()
        self.touched = False  # a clock of ours may be on it
        self.order = 0  # counts sets: a reset settles only what came before it
        self.range_mhz: tuple[int, int] | None = None
        self.group: tuple[str, ...] = ()  # set together with it, itself included
        self.fault: str | None = None
        self.retry_at_s: float | None = None
        self.retry_delay_s = RETRY_FIRST_S
        self.readback: Readback | None = None
        self.alarm: Alarm | None = None
        self.disobeyed_in_row = 0
        self.overruled_until_s = float("-inf")  # until then the operator's word stands over what is seen

    def view(self, now_s: float) -> GuardGpu:
        floor, target = self.range_mhz or (None, None)
        alarm, seen = self.alarm, self.readback
        limits = limited_by(seen.reasons) if seen is not None else ()
        if alarm is not None and alarm.code is Code.YIELDED:
            limits = (*limits, EXTERNAL)
        return GuardGpu(
            self.uuid,
            self._state(),
            floor,
            target,
            self.fault,
            clock_mhz=seen.clock_mhz if seen is not None else None,
            limited_by=limits,
            alarm=alarm.text if alarm is not None else None,
            retry_in_s=max(0.0, alarm.until_s - now_s) if alarm is not None else None,
        )

    def refuse_unless_ready(self) -> None:
        """Raises GuardError while nothing may be set: alarmed, hung, or an earlier reset not done."""
        if self.alarm is not None:
            raise GuardError(self.alarm.code, self.alarm.text)
        if self.worker.hung_calls:
            raise GuardError(
                Code.HUNG, f"GPU {self.uuid}: an NVML call has not come back; refused until it does"
            )
        if self.touched and self.range_mhz is None:
            raise GuardError(
                Code.RESETTING, f"GPU {self.uuid}: its reset is still being retried: {self.fault}"
            )

    def hold_off_s(self, first_s: float) -> float:
        """How long a GPU that did not obey is left alone: longer every time in a row."""
        return min(first_s * 2.0**self.disobeyed_in_row, first_s * HOLD_OFF_MAX_RATIO)

    def close(self) -> None:
        self.worker.close()
        self.reader.close()

    def _state(self) -> ClockState:
        if self.worker.hung_calls:
            return ClockState.HUNG
        if self.range_mhz is not None:
            return ClockState.SET
        if self.touched:
            return ClockState.RESETTING
        return _ALARMED.get(self.alarm.code, ClockState.DEFAULT) if self.alarm else ClockState.DEFAULT
