"""What the driver says holds an instance's GPUs back, told in the log when it begins, not at each reading."""

from __future__ import annotations

from collections.abc import Iterable

from kvwatt.state import GpuSample
from kvwattd.guard.obedience import limited_by

QUIET_S = 60.0  # a reason that was told of less long ago is the same episode: a power cap comes and goes


def held_back(samples: Iterable[GpuSample]) -> bool:
    """Whether heat, a power cap or the like moves a clock about: what is measured then is of no one clock."""
    return any(limited_by(sample.event_reasons) for sample in samples)


class HoldBacks:
    """Feed it every reading."""

    def __init__(self) -> None:
        self._seen_s: dict[tuple[str, str], float] = {}

    def begun(self, samples: Iterable[GpuSample]) -> list[str]:
        """A line for each reason that was not there in the last minute."""
        told = []
        for sample in samples:
            for reason in limited_by(sample.event_reasons):
                last_s = self._seen_s.get((sample.uuid, reason))
                self._seen_s[sample.uuid, reason] = sample.observed_s
                if last_s is None or sample.observed_s - last_s > QUIET_S:
                    told.append(f"GPU {sample.uuid} held back by: {reason}")
        return told
