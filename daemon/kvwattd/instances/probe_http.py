"""Asks vLLM servers over HTTP: `/health`, `/is_sleeping`, `/metrics`, and one completion as a warm-up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar

import httpx

from kvwattd.instances.probe import Look
from kvwattd.telemetry import layouts
from kvwattd.telemetry.exposition import MetricsError, number, samples
from kvwattd.telemetry.poller import MAX_PAGE_BYTES, new_client

_T = TypeVar("_T")
_KV_USAGE: Final = frozenset({"kv_cache_usage_perc", "gpu_cache_usage_perc"})


class HttpProbe:
    """One client per member; `urls`: member -> `http://host:port`.

    Args:
        urls: where each member's vLLM listens, whether it runs or not.
        look_s: deadline of each half of a look.
        warm_up_s: deadline of the warm-up request; a first request may compile kernels.
    """

    def __init__(self, urls: Mapping[str, str], look_s: float = 1.0, warm_up_s: float = 60.0) -> None:
        self._urls = {name: url.rstrip("/") for name, url in urls.items()}
        self._look_s = look_s
        self._warm_up_s = warm_up_s
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def look(self, member: str) -> Look:
        """Ask for health, then for sleep and load at once; the two halves within the deadline each."""
        try:
            async with asyncio.timeout(self._look_s):
                if await self._status(member, "/health") != httpx.codes.OK:
                    return Look(healthy=False)
        except httpx.ConnectError:
            return Look(healthy=False, gone=True)
        except (TimeoutError, httpx.HTTPError):
            return Look(healthy=False)
        asleep, load = await asyncio.gather(
            self._in_time(self._asleep(member)), self._in_time(self._load(member))
        )
        if load is None:
            return Look(healthy=True, asleep=asleep)
        return Look(True, asleep, running=load[0], waiting=load[1], kv_usage=load[2])

    async def load(self, member: str) -> int | None:
        """Running and waiting requests together; None: cannot be told."""
        look = await self.look(member)
        return None if look.running is None or look.waiting is None else look.running + look.waiting

    async def warm_up(self, member: str) -> bool:
        """One token from one short prompt; answered with 200 within the deadline."""
        try:
            async with asyncio.timeout(self._warm_up_s):
                client, url = self._client(member), self._urls[member]
                models = (await client.get(f"{url}/v1/models", headers=_JSON)).raise_for_status().json()
                body = {"model": models["data"][0]["id"], "prompt": "1", "max_tokens": 1}
                answer = await client.post(f"{url}/v1/completions", json=body, headers=_JSON)
                return answer.status_code == httpx.codes.OK and bool(answer.json()["choices"])
        except (TimeoutError, httpx.HTTPError, ValueError, LookupError, TypeError):
            return False

    async def close(self) -> None:
        """Close the connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    async def _in_time(self, asking: Coroutine[Any, Any, _T]) -> _T | None:
        """None: no answer in time, or none that can be used. vLLM is silent on sleep while weights move."""
        try:
            async with asyncio.timeout(self._look_s):
                return await asking
        except (TimeoutError, httpx.HTTPError, MetricsError, ValueError):
            return None

    async def _asleep(self, member: str) -> bool | None:
        """A server without the call (404: no developer mode) cannot be put to sleep over HTTP."""
        response = await self._client(member).get(f"{self._urls[member]}/is_sleeping", headers=_JSON)
        if response.status_code == httpx.codes.NOT_FOUND:
            return False
        if response.status_code != httpx.codes.OK:
            return None
        told = response.json()
        asleep = told.get("is_sleeping") if isinstance(told, dict) else None
        return asleep if isinstance(asleep, bool) else None

    async def _load(self, member: str) -> tuple[int, int, float]:
        """Running, waiting (sums over the engines of the page) and the fullest KV cache."""
        page = await self._page(member)
        found: dict[str, list[float]] = {}
        for series, raw in samples(page):
            if series.name in (layouts.RUNNING, layouts.WAITING) or series.name in _KV_USAGE:
                key = "usage" if series.name in _KV_USAGE else series.name
                found.setdefault(key, []).append(number(series.name, raw))
        if layouts.RUNNING not in found or layouts.WAITING not in found:
            raise MetricsError("missing_series", (layouts.RUNNING, layouts.WAITING), "no counts of requests")
        usage = min(max(found.get("usage", [0.0])), 1.0)
        return round(sum(found[layouts.RUNNING])), round(sum(found[layouts.WAITING])), usage

    async def _page(self, member: str) -> bytes:
        body = bytearray()
        async with self._client(member).stream("GET", f"{self._urls[member]}/metrics") as response:
            response.raise_for_status()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_PAGE_BYTES:
                    raise MetricsError("too_large", (), "the page is too large")
        return bytes(body)

    async def _status(self, member: str, path: str) -> int:
        response = await self._client(member).get(f"{self._urls[member]}{path}", headers=_JSON)
        return response.status_code

    def _client(self, member: str) -> httpx.AsyncClient:
        if member not in self._clients:
            self._clients[member] = new_client()
        return self._clients[member]


_JSON: Final = {"Accept": "*/*"}
