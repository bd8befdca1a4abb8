"""A number of instances by hand, for a limited time; a restart ends it, as it ends a clock by hand."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from kvwatt.pool import PoolParams

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ManualScale:
    """So many ready members until a moment (monotonic seconds)."""

    instances: int
    until_s: float
    by: str

    def over(self, params: PoolParams) -> PoolParams:
        """The settings while it holds: exactly so many, at once."""
        return replace(
            params,
            minimum=self.instances,
            maximum=self.instances,
            cooldown_s=0.0,
            less_for_s=0.0,
            load_max=1.0,
            survivors_load_max=1.0,
        )


def in_force(manual: ManualScale | None, now_s: float) -> ManualScale | None:
    """It, or None once its time is over."""
    if manual is None or now_s < manual.until_s:
        return manual
    log.info("pool: %d instances by hand (%s) ended", manual.instances, manual.by)
    return None
