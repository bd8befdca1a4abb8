"""Clocks under the guard's lease for as long as a sweep lasts; reset at the end whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import Code, GuardError, GuardHello


class ClockLease:
    """`async with ClockLease(...) as lease: await lease.set(1500)`. Methods raise GuardError.

    A machine that stands still for longer than the lease loses the clock, not the sweep: `check` tells of it
    once measuring is over, and the next `set` takes the lease up again.
    """

    def __init__(self, socket: Path, uuids: Sequence[str], timeout_s: float = 2.0) -> None:
        self._client = GuardClient(socket, timeout_s)
        self._uuids = tuple(uuids)
        self._keeper: asyncio.Task[None] | None = None
        self._ran_out: GuardError | None = None
        self.hello: GuardHello | None = None

    async def __aenter__(self) -> ClockLease:
        self.hello = await self._client.connect()
        self._keeper = asyncio.create_task(self._keep(self.hello.lease_s / 4))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            # A lost guard has reset the clocks itself, and `set` has already told of it.
            with contextlib.suppress(asyncio.CancelledError, GuardError):
                await self._keeper
        with contextlib.suppress(GuardError):
            await self._client.reset(self._uuids)
        await self._client.close()

    async def set(self, clock_mhz: int) -> None:
        """Lock all GPUs to one clock, also after a lease that ran out."""
        self._check_keeper()
        await self._client.set_clocks(self._uuids, clock_mhz, clock_mhz)
        self._ran_out = None

    async def release(self) -> None:
        """Driver default, keeping the connection."""
        await self._client.reset(self._uuids)

    async def check(self) -> None:
        """Raises GuardError when the lease was lost meanwhile: measurements since are not at the clock.

        The guard is asked: after a machine stood still the next renewal in turn would come too late.
        """
        self._check_keeper()
        if self._ran_out is None:
            await self._renew()
        if self._ran_out is not None:
            raise self._ran_out

    def _check_keeper(self) -> None:
        if self._keeper is not None and self._keeper.done() and not self._keeper.cancelled():
            error = self._keeper.exception()
            if error is not None:
                raise error

    async def _keep(self, period_s: float) -> None:
        while True:
            await asyncio.sleep(period_s)
            await self._renew()

    async def _renew(self) -> None:
        try:
            await self._client.renew()
        except GuardError as error:
            if error.code != Code.LEASE_EXPIRED:
                raise
            self._ran_out = error
