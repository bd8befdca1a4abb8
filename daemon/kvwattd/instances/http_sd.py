"""The generic router: a list of the instances in service, which any router may fetch over HTTP.

Two formats: Prometheus HTTP service discovery and plain JSON. Nobody confirms that the list was taken up, so
a withdrawal counts as confirmed `settle_s` after the member left the list (longer than the slowest reader
takes to fetch and apply it), and the end of its requests is seen by the engine's own counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Listed:
    """One instance as the lists show it; `url` is its base URL."""

    name: str
    kind: str
    url: str


def prometheus_sd(listed: Collection[Listed]) -> list[dict[str, object]]:
    """Prometheus HTTP SD: one group per instance, its name and kind as labels."""
    return [
        {
            "targets": [urlsplit(item.url).netloc],
            "labels": {
                "__scheme__": urlsplit(item.url).scheme,
                "__meta_kvwatt_instance": item.name,
                "__meta_kvwatt_kind": item.kind,
            },
        }
        for item in listed
    ]


def plain(listed: Collection[Listed]) -> dict[str, object]:
    """Plain JSON: names, kinds and base URLs."""
    return {"instances": [{"name": i.name, "kind": i.kind, "url": i.url} for i in listed]}


class HttpSdRouter:
    """The list's content. `now`: monotonic seconds; `sleep`: waits for so many seconds.

    A fresh list is not handed out (`listing()` is None, to be answered with 503) before members were admitted
    and looked at once more: readers then keep the list of before the restart.
    """

    name = "http-sd"
    counts_sessions = False

    def __init__(
        self,
        settle_s: float,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._settle_s = settle_s
        self._now = now
        self._sleep = sleep
        self._in: set[str] = set()
        self._out_s: dict[str, float] = {}
        self._complete = False

    def listing(self) -> frozenset[str] | None:
        """Names to be listed; None: not known yet, readers must keep what they have."""
        return frozenset(self._in) if self._complete else None

    async def admit(self, member: str) -> None:
        """List it."""
        self._out_s.pop(member, None)
        self._in.add(member)

    async def withdraw(self, member: str) -> None:
        """Take it off the list and wait until every reader has seen that."""
        self._in.discard(member)
        since_s = self._out_s.setdefault(member, self._now())
        left_s = since_s + self._settle_s - self._now()
        if left_s > 0:
            await self._sleep(left_s)

    async def sessions(self, member: str) -> int | None:
        """A list has no sessions."""
        return None

    async def admitted(self) -> frozenset[str] | None:
        """What is listed."""
        self._complete = self._complete or bool(self._in)
        return frozenset(self._in)

    async def close(self) -> None:
        """The list goes with the process; readers keep what they have."""


def listed(names: frozenset[str], kinds: Mapping[str, str], urls: Mapping[str, str]) -> tuple[Listed, ...]:
    """The rows of the listed members, in the order of `kinds`."""
    return tuple(Listed(name, kind, urls[name]) for name, kind in kinds.items() if name in names)
