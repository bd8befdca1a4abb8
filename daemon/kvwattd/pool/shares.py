"""Each member's share of the requests: in proportion to what its kind carries, where kinds serve together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

from kvwatt.pool import EngineKind, Member
from kvwatt.pool_weights import weights
from kvwattd.instances.router import RouterError

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0

Weigh = Callable[[Mapping[str, int]], Awaitable[None]]


class Shares:
    """`weigh` tells the router a weight for each member, and may be asked for the same again.

    None: the router knows no weights (then kinds are not mixed, see `PoolParams.mixed`)."""

    def __init__(self, weigh: Weigh | None) -> None:
        self._weigh = weigh
        self._problem = ""

    async def keep(self, members: Collection[Member], kinds: Mapping[str, EngineKind]) -> None:
        """At every plan, so that a router that was restarted is told again. Never raises for the outside."""
        if self._weigh is None or len(kinds) < 2:
            return
        by_kind = weights({name: kind.points.max_rate_per_s for name, kind in kinds.items()})
        problem = ""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._weigh({m.name: by_kind[m.kind] for m in members if m.kind in by_kind})
        except RouterError as error:
            problem = error.detail
        except TimeoutError:
            problem = f"no answer within {TIMEOUT_S:g} s"
        if problem and problem != self._problem:
            log.warning("pool: the router was not told its weights: %s", problem)
        self._problem = problem
