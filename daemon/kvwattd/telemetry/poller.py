"""One scrape of one server under a hard deadline. Every failure has a cause; none returns a snapshot."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import cache
from typing import Final

import httpx

from kvwatt.state import EngineSnapshot
from kvwattd.telemetry.engines import parse, self_test
from kvwattd.telemetry.exposition import MetricsError
from kvwattd.telemetry.report import LayoutReport

MAX_PAGE_BYTES: Final = 1 << 20  # a page of one engine is about 50 KB
MAX_VERSION_BYTES: Final = 4096
_HEADERS: Final = {"Accept": "text/plain", "Accept-Encoding": "identity"}  # no decompression bombs


class TelemetryError(Exception):
    """A scrape that gave nothing usable.

    `cause`: unreachable, timeout, http_status, content_type, too_large, truncated, or another kind of
    MetricsError.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


@cache
def _tls() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes 13 ms and 0.7 MB each time."""
    return httpx.create_ssl_context(trust_env=False)


def new_client() -> httpx.AsyncClient:
    """A client for one server: keep-alive, no proxies or credentials from the environment, no redirects."""
    # vLLM closes a connection that was idle for 5 s: one that is used again just then breaks.
    limits = httpx.Limits(max_connections=2, max_keepalive_connections=1, keepalive_expiry=3.0)
    # No timeout per phase: the poller's deadline covers the whole exchange.
    return httpx.AsyncClient(
        verify=_tls(),
        trust_env=False,
        limits=limits,
        timeout=None,  # noqa: S113
        headers=_HEADERS,
    )


class Poller:
    """Scrapes `url`/metrics. `deadline_s` bounds connecting, waiting and reading together."""

    def __init__(
        self,
        url: str,
        deadline_s: float,
        max_bytes: int = MAX_PAGE_BYTES,
        client: httpx.AsyncClient | None = None,
        *,
        engine: str | None = None,
        model_name: str | None = None,
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/metrics")
        self._deadline_s = deadline_s
        self._max_bytes = max_bytes
        self._client = client or new_client()
        self._engine = engine
        self._model_name = model_name
        self._version: str | None = None
        self.layout: str | None = None  # of the newest page accepted

    async def poll(self, now: Callable[[], float]) -> EngineSnapshot:
        """The engine's state as of the moment the request was sent. Raises TelemetryError."""
        observed_s = now()
        page = await self._page()
        try:
            snapshot = parse(page, observed_s, self._engine, self._model_name)
        except MetricsError as error:
            self.layout = None
            raise TelemetryError(error.kind, error.detail) from error
        self.layout = self.layout or self_test(page).layout
        return snapshot

    async def check_layout(self) -> LayoutReport:
        """Scrape once and say whether the metric layout is known. Raises TelemetryError."""
        page = await self._page()
        try:
            return self_test(page)
        except MetricsError as error:
            raise TelemetryError(error.kind, error.detail) from error

    async def version(self) -> str | None:
        """vLLM's version as the server states it, None when it does not; remembered until a scrape fails."""
        if self._version is None:
            try:
                response = await self._get("/version", "application/json", MAX_VERSION_BYTES)
                stated = httpx.Response(200, content=response).json()
            except (TelemetryError, ValueError):
                return None
            version = stated.get("version") if isinstance(stated, dict) else None
            self._version = version if isinstance(version, str) else None
        return self._version

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _page(self) -> bytes:
        try:
            return await self._get("/metrics", "text/plain", self._max_bytes)
        except TelemetryError:
            self._version = self.layout = None  # whatever answers next may be another version
            raise

    async def _get(self, path: str, content_type: str, max_bytes: int) -> bytes:
        url = self._url + path
        try:
            async with asyncio.timeout(self._deadline_s), self._client.stream("GET", url) as response:
                _check_head(response, url, content_type)
                return await _bounded_body(response, url, max_bytes)
        except TimeoutError as error:
            raise TelemetryError("timeout", f"{url} gave no page within {self._deadline_s} s") from error
        except httpx.RemoteProtocolError as error:
            raise TelemetryError("truncated", f"{url} broke off its answer: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            detail = str(error) or type(error).__name__
            raise TelemetryError("unreachable", f"{url} cannot be reached: {detail}") from error


def _check_head(response: httpx.Response, url: str, content_type: str) -> None:
    if response.status_code != httpx.codes.OK:
        raise TelemetryError("http_status", f"{url} answered HTTP {response.status_code}")
    given = response.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != content_type:
        raise TelemetryError("content_type", f"{url} sent {given[:60] or 'no type'!r}, need {content_type}")


async def _bounded_body(response: httpx.Response, url: str, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise TelemetryError("too_large", f"{url} sent more than {max_bytes} bytes")
    return bytes(body)
