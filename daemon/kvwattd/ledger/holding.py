"""Whether an instance is held at driver default now, and what its time counts as.

The loop asks at every tick in which a clock was decided. Where the regime is anything but ACTIVE the answer
is no, the slot in progress is given up, and time counts for nothing until control is back and settled.
"""

from __future__ import annotations

import logging

from kvwatt.holdout import HELD, Arm, Draws, HoldoutParams, Slot
from kvwatt.state import EngineSnapshot

log = logging.getLogger(__name__)

NONE = HoldoutParams(share=0.0)


class HoldoutRun:
    """One instance's slots, windows and arms. Time is monotonic seconds."""

    def __init__(self, params: HoldoutParams = NONE, seed: bytes = b"", name: str = "") -> None:
        self._params = params
        self._draws = Draws(params, seed)
        self._name = name
        self._slot: Slot | None = None
        self._began_s: float | None = None  # of the slot before the first drawn: its load is watched
        self._settled_s: float | None = None
        self._tokens: float | None = None
        self.arm = Arm.NONE
        self.windows = 0

    @property
    def held(self) -> bool:
        """Whether driver default stands for what was decided at the latest tick."""
        return self.arm in HELD

    @property
    def slot(self) -> Slot | None:
        """The slot in progress."""
        return self._slot

    def hold(self, now_s: float, eligible: bool, page: EngineSnapshot | None) -> bool:
        """Whether driver default is to stand for what was decided. `page`: the newest, for the load."""
        if not eligible:
            self._slot = self._began_s = self._settled_s = None
            self.arm = Arm.NONE
            return False
        if self._settled_s is None:  # control has just begun: whatever was before still shows
            self._settled_s, self._began_s = now_s + self._params.settle_s, now_s
            self._tokens = _tokens(page)
        if self._params.share > 0.0:
            self._advance(now_s, page)
        self.arm = self._arm(now_s)
        return self.held

    def _advance(self, now_s: float, page: EngineSnapshot | None) -> None:
        """The next slot, once this one is over and its load is known."""
        began_s = self._slot.start_s if self._slot is not None else self._began_s
        if began_s is None or now_s < began_s + self._params.window_s:
            return
        if self._slot is not None and self._slot.held:
            self._settled_s = now_s + self._params.settle_s
        tokens = _tokens(page)
        load = _load(self._tokens, tokens, now_s - began_s)
        self._tokens, self._slot = tokens, None
        if load is None:
            self._began_s = now_s
            return
        self._slot = self._draws.next(now_s, load)
        if self._slot.held:
            self.windows += 1
            log.info(
                "instance %s: held at driver default for %g s to measure what control saves",
                self._name,
                self._params.window_s,
            )

    def _arm(self, now_s: float) -> Arm:
        slot = self._slot
        if slot is not None and slot.held:
            return Arm.WARMUP if now_s < slot.start_s + self._params.warmup_s else Arm.DEFAULT
        settling = self._settled_s is not None and now_s < self._settled_s
        return Arm.SETTLING if settling else Arm.CONTROLLED


def _tokens(page: EngineSnapshot | None) -> float | None:
    return None if page is None else page.prompt_tokens_total + page.generation_tokens_total


def _load(before: float | None, now: float | None, seconds: float) -> float | None:
    """Tokens per second; None where the engine began anew or has not been seen."""
    if before is None or now is None or now < before or seconds <= 0.0:
        return None
    return (now - before) / seconds
