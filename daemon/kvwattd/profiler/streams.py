"""The profiler's own load: raw streams to /v1/completions that read what comes and keep only when.

An HTTP client library costs about 100 us per token; at 256 sequences that would measure the client.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

_TOKEN = b'"choices":[{'
_READ_BYTES = 1 << 16


class LoadError(Exception):
    """The server refused or cut a request of the profiler; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. Prompts are random tokens up to `last_token_id`, so that no cache helps."""

    url: str
    model: str
    last_token_id: int = 31_999
    first_token_id: int = 100

    def address(self) -> tuple[str, int]:
        """Host and port. Raises LoadError unless the URL is plain http with a host."""
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname:
            raise LoadError(f"url must be http://HOST:PORT, got {self.url!r}")
        return parts.hostname, parts.port or 80


async def complete(
    target: Target,
    prompt_tokens: int,
    max_tokens: int,
    random_tokens: random.Random,
    on_first: Callable[[], None] | None = None,
) -> float:
    """Seconds from sending the request to its first token; returns when the stream has ended."""
    host, port = target.address()
    payload = _payload(target, prompt_tokens, max_tokens, random_tokens)
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise LoadError(f"{target.url}: no connection: {error}") from None
    try:
        sent_s = time.monotonic()
        writer.write(payload)
        await writer.drain()
        await _head(reader, target)
        return await _body(reader, sent_s, target, on_first)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise LoadError(f"{target.url}: stream cut: {error}") from None
    finally:
        writer.transport.abort()  # an unread rest must not keep the sequence running


async def _head(reader: asyncio.StreamReader, target: Target) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    status = head.split(maxsplit=2)[1:2]
    if status != [b"200"]:
        body = (await reader.read(2000)).decode(errors="replace").strip()
        raise LoadError(
            f"{target.url}/v1/completions answered {status[0].decode() if status else '?'}: {body}"
        )


async def _body(
    reader: asyncio.StreamReader, sent_s: float, target: Target, on_first: Callable[[], None] | None
) -> float:
    first_s: float | None = None
    seen = b""
    while data := await reader.read(_READ_BYTES):
        if first_s is None:
            seen += data
            if _TOKEN in seen:
                first_s = time.monotonic() - sent_s
                seen = b""
                if on_first is not None:
                    on_first()
    if first_s is None:
        raise LoadError(
            f"{target.url}: a stream ended without a token: {seen[-300:].decode(errors='replace')}"
        )
    return first_s


def _payload(target: Target, prompt_tokens: int, max_tokens: int, random_tokens: random.Random) -> bytes:
    ids = range(target.first_token_id, target.last_token_id + 1)
    body = {
        "model": target.model,
        "prompt": random_tokens.choices(ids, k=prompt_tokens),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
    }
    content = json.dumps(body, separators=(",", ":")).encode()
    host, port = target.address()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Batch:
    """Holds `size` sequences running; one that reaches its end is replaced.

    `async with Batch(...) as batch: await batch.started(); ...; batch.check()`.
    """

    def __init__(self, target: Target, size: int, context_tokens: int, max_tokens: int, seed: int) -> None:
        self._target = target
        self._size = size
        self._context_tokens = context_tokens
        self._max_tokens = max_tokens
        self._random = random.Random(seed)  # noqa: S311 - load, not secrets
        self._tasks: list[asyncio.Task[None]] = []
        self._first = 0
        self._all_started = asyncio.Event()

    async def __aenter__(self) -> Batch:
        self._tasks = [asyncio.create_task(self._keep()) for _ in range(self._size)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def started(self) -> None:
        """Until every sequence has produced its first token. Raises LoadError when one cannot."""
        waiting = asyncio.create_task(self._all_started.wait())
        try:
            await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        self.check()

    def check(self) -> None:
        """Raises the LoadError of a sequence that failed."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _keep(self) -> None:
        count_first: Callable[[], None] | None = self._count
        while True:
            await complete(self._target, self._context_tokens, self._max_tokens, self._random, count_first)
            count_first = None

    def _count(self) -> None:
        self._first += 1
        if self._first >= self._size:
            self._all_started.set()
