"""A router in the client: each request to the instance with the fewest of ours, of those kvwatt lists."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx

from kvwatt_sim.demo.settings import DemoError

FOLLOW_S = 0.25


class LeastBusy:
    """Follows the list of instances in service; a list that cannot be fetched leaves the one before."""

    name = "least busy of those listed at /api/v1/pool/targets"

    def __init__(self, daemon_url: str) -> None:
        self._url = f"{daemon_url}/api/v1/pool/targets"
        self._listed: tuple[str, ...] = ()
        self._inside: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()

    @property
    def listed(self) -> tuple[str, ...]:
        """Base URLs that requests go to now."""
        return self._listed

    def begin(self) -> str:
        """The least busy one; of equals the one that was sent least. Raises DemoError where there is none."""
        if not self._listed:
            raise DemoError("no instance is in service")
        url = min(self._listed, key=lambda item: (self._inside[item], self._sent[item]))
        self._inside[url] += 1
        self._sent[url] += 1
        return url

    def end(self, base_url: str) -> None:
        """A request there has ended."""
        self._inside[base_url] -= 1

    async def follow(self) -> None:
        """Fetch the list until cancelled."""
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            while True:
                await self.fetch(client)
                await asyncio.sleep(FOLLOW_S)

    async def fetch(self, client: httpx.AsyncClient) -> None:
        """Once."""
        try:
            answer = (await client.get(self._url)).raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return
        self._listed = tuple(_urls(answer))


class ThroughRouter(LeastBusy):
    """A router spreads them; the list only tells when somebody is in service."""

    name = "HAProxy"

    def __init__(self, router_url: str, daemon_url: str) -> None:
        super().__init__(daemon_url)
        self._router_url = router_url

    def begin(self) -> str:
        """The router, whoever serves."""
        return self._router_url

    def end(self, base_url: str) -> None:
        """The router counts."""


def _urls(groups: Any) -> list[str]:  # noqa: ANN401 (JSON)
    """Of Prometheus HTTP service discovery."""
    return [
        f"{group['labels'].get('__scheme__', 'http')}://{target}"
        for group in groups
        for target in group["targets"]
    ]
