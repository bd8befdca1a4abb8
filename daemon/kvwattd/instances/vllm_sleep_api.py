"""The calls of one vLLM server that sleep mode needs. Each under a deadline; every failure has a cause.

The routes exist with VLLM_SERVER_DEV_MODE=1 and `--enable-sleep-mode` only (vLLM docs/features/sleep_mode).
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httpx

from kvwattd.instances.backend import BackendError, Cause
from kvwattd.telemetry import layouts
from kvwattd.telemetry.exposition import MetricsError, number, samples

MAX_BYTES = 1 << 20
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})


class SleepApi:
    """One server at `url`. `client` is closed with it. Every method raises BackendError."""

    def __init__(self, url: str, client: httpx.AsyncClient, deadline_s: float) -> None:
        self._url = url.rstrip("/")
        self._client = client
        self._deadline_s = deadline_s
        self._tells_pause = True

    async def asleep(self) -> bool:
        """Whether anything of it sleeps. Cause `unsupported` without development mode."""
        found = await self._json("GET", "/is_sleeping")
        return _truth(found, "is_sleeping", self._url)

    async def paused(self) -> bool:
        """Whether it holds requests though nothing sleeps; False where the version cannot tell."""
        if not self._tells_pause:
            return False
        try:
            found = await self._json("GET", "/is_paused")
        except BackendError as error:
            if error.cause != Cause.UNSUPPORTED:
                raise
            self._tells_pause = False
            return False
        return _truth(found, "is_paused", self._url)

    async def requests(self) -> int:
        """Running and waiting, of every engine behind it. A page without them is an error, never zero."""
        page = await self._page()
        try:
            values: dict[str, list[float]] = {layouts.RUNNING: [], layouts.WAITING: []}
            for series, value in samples(page):
                if series.name in values:
                    values[series.name].append(number(series.name, value))
        except MetricsError as error:
            raise BackendError(Cause.FAILED, f"{self._url}/metrics: {error}") from None
        if not all(values.values()):
            raise BackendError(Cause.FAILED, f"{self._url}/metrics does not tell how many requests there are")
        return int(sum(map(sum, values.values())))

    async def weights_kept(self, otherwise: bool) -> bool:
        """Whether waking alone brings the weights back (level 1); `otherwise` where the page has no word."""
        states = await self._page_says()
        # "awake" on a server that sleeps: it is only paused, or half woken and may have no weights.
        return states.get("weights_offloaded") == 1.0 if states else otherwise

    async def fell_asleep(self) -> bool:
        """Whether it sleeps, and does not only hold requests (which newer versions call sleeping too)."""
        return await self.asleep() and (await self._page_says()).get("awake") != 1.0

    async def sleep(self, level: int, deadline_s: float) -> None:
        """Whoever is still in there ends first (versions that know `mode`; older ones ignore it)."""
        await self._json("POST", f"/sleep?level={level}&mode=wait", deadline_s)

    async def wake_up(self, deadline_s: float) -> None:
        """Everything, at once."""
        await self._json("POST", "/wake_up", deadline_s)

    async def wake_and_reload(self, deadline_s: float) -> None:
        """After level 2: memory for the weights, the weights, memory for the cache. May be repeated."""
        await self._json("POST", "/wake_up?tags=weights", deadline_s)
        await self._json("POST", "/collective_rpc", deadline_s, {"method": "reload_weights"})
        await self._json("POST", "/wake_up?tags=kv_cache", deadline_s)

    async def resume(self) -> None:
        """Let requests run again."""
        await self._json("POST", "/resume")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _page_says(self) -> dict[str, float]:
        """The gauges of its sleep state by their label; empty where the version has none."""
        page = await self._page()
        try:
            return {
                series.labels.get("sleep_state", ""): number(series.name, value)
                for series, value in samples(page)
                if series.name == layouts.SLEEP_STATE
            }
        except MetricsError as error:
            raise BackendError(Cause.FAILED, f"{self._url}/metrics: {error}") from None

    async def _page(self) -> bytes:
        return (await self._ask("GET", "/metrics", self._deadline_s, None)).content

    async def _json(
        self, method: str, path: str, deadline_s: float | None = None, body: object = None
    ) -> object:
        response = await self._ask(method, path, deadline_s or self._deadline_s, body)
        try:
            return response.json() if response.content else None
        except ValueError:
            raise BackendError(Cause.FAILED, f"{self._url}{path} answered no JSON") from None

    async def _ask(self, method: str, path: str, deadline_s: float, body: object) -> httpx.Response:
        url = self._url + path
        extra: dict[str, Any] = {} if body is None else {"json": body}
        try:
            async with asyncio.timeout(deadline_s):
                response = await self._client.request(method, url, **extra)
        except TimeoutError:
            raise BackendError(Cause.DEADLINE, f"{url} did not answer within {deadline_s:g} s") from None
        except httpx.ConnectError as error:
            raise BackendError(Cause.UNREACHABLE, f"{url} cannot be reached: {error}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            detail = str(error) or type(error).__name__
            raise BackendError(Cause.FAILED, f"{url} broke off: {detail}") from None
        if response.status_code in _GONE:
            raise BackendError(
                Cause.UNSUPPORTED, f"{url} answered HTTP {response.status_code}: no sleep mode"
            )
        if response.is_error or len(response.content) > MAX_BYTES:
            raise BackendError(Cause.FAILED, f"{url} answered HTTP {response.status_code}")
        return response


def _truth(found: object, key: str, url: str) -> bool:
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, bool):
        raise BackendError(
            Cause.FAILED, f"{url}/{key} answered {str(found)[:80]!r}: true or false is expected"
        )
    return value
