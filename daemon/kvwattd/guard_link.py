"""The daemon's side of the guard: one task that keeps the lease and applies the latest wishes.

Wishes are values and the latest wins: the tick writes them, this task applies them, and neither waits
for the other. The lease is renewed only while the tick makes progress, so a stalled loop loses it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import Code, GuardError, GuardGpu, GuardHello, GuardStatus

log = logging.getLogger(__name__)

RECONNECT_S = 0.5
STATUS_PERIOD_S = 0.25
START_GRACE_S = 5.0  # a guard that is just being started cannot answer yet
# After these the connection says nothing about the future: drop it, and the guard resets everything.
CONNECTION_LOST = frozenset({Code.UNREACHABLE, Code.TIMEOUT, Code.LEASE_EXPIRED, Code.BUSY, Code.STOPPING})


@dataclass(frozen=True, slots=True)
class Wish:
    """What one instance's GPUs should run at; target None is driver default."""

    uuids: tuple[str, ...]
    floor_mhz: int
    target_mhz: int | None


class Outcome(Protocol):
    """Who is told how a wish ended."""

    def on_applied(self, clock_mhz: int | None, now_s: float) -> None: ...
    def on_actuation_error(self, reason: str, now_s: float) -> None: ...
    def on_alarm(self, reason: str | None) -> None: ...


class GuardLink:
    """Connection to the guard; `run()` until cancelled."""

    def __init__(
        self, socket: Path, timeout_s: float, now: Callable[[], float], alive: Callable[[], bool]
    ) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._now = now
        self._alive = alive
        self._client: GuardClient | None = None
        self._wishes: dict[str, tuple[Wish, Outcome]] = {}
        self._applied: dict[str, Wish] = {}
        self._unsure: set[str] = set()  # whose last request failed: what the guard holds for them is unknown
        self._changed = asyncio.Event()
        self._needed = False
        self._patient_until_s = 0.0
        self._sending: str | None = None  # whose wish is on its way
        self._asked_s = float("-inf")
        self.hello: GuardHello | None = None
        self.status: GuardStatus | None = None  # the newest, None while not connected
        self.errors = 0
        self.last_error: str | None = "not connected yet"
        self.renewed_s: float | None = None

    @property
    def ready(self) -> bool:
        """Whether clocks can be written now."""
        return self._client is not None

    @property
    def fault(self) -> str | None:
        """Why the guard cannot be used; None while connected, and while it is given time to start."""
        if self.ready or self._now() < self._patient_until_s:
            return None
        return f"guard: {self.last_error}"

    def need(self, needed: bool) -> None:
        """Whether clocks may be written at all; without need the link is closed and everything reset."""
        if needed != self._needed:
            self._needed = needed
            self._patient_until_s = self._now() + START_GRACE_S
            self._changed.set()

    def wish(self, name: str, wish: Wish, outcome: Outcome) -> None:
        """Replace an instance's wish."""
        old = self._wishes.get(name)
        self._wishes[name] = (wish, outcome)
        if old is None or old[0] != wish:
            self._changed.set()

    async def released(self, name: str, limit_s: float) -> None:
        """Wait until an instance's GPUs are at driver default; at the limit the guard resets all of ours."""
        until_s = self._now() + limit_s
        while self._sending == name or name in self._unsure or _holds(self._applied.get(name)):
            if self._now() >= until_s:
                await self.close(f"{name} could not be reset in time")
            await asyncio.sleep(0.02)

    def forget(self, name: str) -> None:
        """Nothing more is wished for an instance, nor told to it."""
        self._wishes.pop(name, None)
        self._applied.pop(name, None)

    async def run(self) -> None:
        """Apply wishes as they change and keep the lease alive."""
        try:
            while True:
                await self._round()
        finally:
            await self.close()

    async def _round(self) -> None:
        if not self._needed:
            if self._client is not None:
                log.info("guard: released")
            await self.close("not needed in this mode")
            await self._changed.wait()
            self._changed.clear()
            return
        try:
            if self._client is None:
                await self._connect()
            self._changed.clear()
            # First the lease: a set would settle an expiry for all GPUs, those of other instances too.
            await self._renew()
            await self._ask()
            await self._apply()
        except GuardError as error:
            await self._lost(error)
            await asyncio.sleep(RECONNECT_S)
            return
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that meets the event.
            async with asyncio.timeout(self._pause_s()):
                await self._changed.wait()
        except TimeoutError:
            return

    def _pause_s(self) -> float:
        return self.hello.lease_s / 4 if self.hello is not None else RECONNECT_S

    async def _connect(self) -> None:
        client = GuardClient(self._socket, self._timeout_s)
        try:
            self.hello = await client.connect()
        except GuardError:
            await client.close()
            raise
        self._client, self.last_error = client, None
        self._patient_until_s = 0.0  # from now on a lost guard is a fault at once
        self.renewed_s = self._now()
        log.info("guard: connected, lease %.1f s, GPUs %s", self.hello.lease_s, ", ".join(self.hello.gpus))

    async def _ask(self) -> None:
        """What the guard sees: it may have had to undo, or to leave to others, what was applied."""
        now_s = self._now()
        if self._client is None or now_s - self._asked_s < STATUS_PERIOD_S:
            return
        self._asked_s = now_s
        self.status = await self._client.status()
        gpus = {gpu.uuid: gpu for gpu in self.status.gpus}
        for name, (wish, outcome) in list(self._wishes.items()):
            mine = [gpus[uuid] for uuid in wish.uuids if uuid in gpus]
            outcome.on_alarm("; ".join(f"guard: {gpu.alarm}" for gpu in mine if gpu.alarm) or None)
            held = self._applied.get(name)
            if held is not None and held.uuids == wish.uuids and _undone(held, mine):
                self._take_back(name, wish, outcome)
                told = [text for gpu in mine if (text := gpu.alarm or gpu.fault)]
                reason = "; ".join(told) or "the clock is not held any more"
                outcome.on_actuation_error(f"guard: {reason}", self._now())

    def _take_back(self, name: str, wish: Wish, outcome: Outcome) -> None:
        """What was held is not any more: the next tick decides anew."""
        del self._applied[name]
        self._unsure.add(name)  # of several GPUs some may be held still
        self._wishes[name] = (_default(wish), outcome)

    async def _apply(self) -> None:
        for name, (wish, outcome) in list(self._wishes.items()):
            held = self._applied.get(name)
            at_default = held is None and name not in self._unsure
            if held == wish or (at_default and wish.target_mhz is None):
                continue
            if wish.target_mhz is not None and not self._alive():
                continue  # decided on what a stalled tick saw
            self._sending = name
            try:
                await self._send(wish)
            except GuardError as error:
                # A refused clock may leave the one before it: a later wish for default must reach the guard.
                self._applied.pop(name, None)
                self._unsure.add(name)
                if wish.target_mhz is not None:
                    outcome.on_actuation_error(f"guard: {error}", self._now())
                if error.code in CONNECTION_LOST:
                    raise
                self._count(error)
                continue
            finally:
                self._sending = None
            self._applied[name] = wish
            self._unsure.discard(name)
            outcome.on_applied(wish.target_mhz, self._now())

    async def _send(self, wish: Wish) -> None:
        client = self._client
        if client is None:
            raise GuardError(Code.UNREACHABLE, "not connected")
        if wish.target_mhz is None:
            await client.reset(wish.uuids)
        else:
            await client.set_clocks(wish.uuids, wish.floor_mhz, wish.target_mhz)
        self.renewed_s = self._now()

    async def _renew(self) -> None:
        if self._client is None or not self._alive():
            return
        await self._client.renew()
        self.renewed_s = self._now()

    def _count(self, error: GuardError) -> None:
        if self._now() >= self._patient_until_s:
            self.errors += 1
            if self.last_error != str(error):
                log.warning("guard: %s", error)
        self.last_error = str(error)

    async def _lost(self, error: GuardError) -> None:
        self._count(error)
        await self.close(str(error))

    async def close(self, reason: str = "closed") -> None:
        """Drop the connection; the guard then resets every GPU it set for us."""
        client, self._client = self._client, None
        held, self._applied = self._applied, {}
        self._unsure.clear()
        self.renewed_s = None
        self.status, self._asked_s = None, float("-inf")
        self.last_error = reason
        if client is not None:
            await client.close()
        for name, (wish, outcome) in self._wishes.items():
            self._wishes[name] = (_default(wish), outcome)
            outcome.on_alarm(None)
            if name in held:
                outcome.on_applied(None, self._now())


def _default(wish: Wish) -> Wish:
    """Until the next tick: what was wished before a loss must not be set after it."""
    return replace(wish, target_mhz=None)


def _undone(held: Wish, gpus: list[GuardGpu]) -> bool:
    return held.target_mhz is not None and any(gpu.target_mhz != held.target_mhz for gpu in gpus)


def _holds(wish: Wish | None) -> bool:
    return wish is not None and wish.target_mhz is not None
