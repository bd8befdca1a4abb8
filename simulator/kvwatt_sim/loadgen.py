"""Replays requests against `/v1/completions` on absolute times and records when their tokens came.

Open loop: a request is sent at its due time whatever became of the others, and latencies count from the
due time, so a late generator or a slow server cannot hide waiting. One asyncio protocol per request reads
the server-sent events and only counts them (about 10 us per token), because generator, servers and daemon
share the machine and a starved generator would measure itself. `lag_s` tells how late its loop ran.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from kvwatt_sim.traces import TraceRequest

_EVENT = b'"choices":[{'  # in every event that carries tokens; neither in the usage event nor in [DONE]
_DONE = b"data: [DONE]"
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')
_TAIL_BYTES = 512  # what is kept of the stream: enough for the usage event and [DONE]
_ERROR_BYTES = 2048
_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 100, 31_999  # plain tokens in the vocabularies of common models


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How requests are put to the server.

    `max_tokens` caps every answer, as clients do that do not know how long it gets; the true length goes
    to the simulated server as an extension field (`length_hint`). A real engine is made to give it by
    `exact_lengths`: `max_tokens` = the length and `ignore_eos`.
    """

    model: str = "sim"
    max_tokens: int = 2048
    length_hint: bool = True
    exact_lengths: bool = False
    seed: int = 0
    connect_timeout_s: float = 10.0


@dataclass(slots=True)
class RequestRecord:
    """What became of one request; monotonic seconds. `done_s` None: unfinished; `error`: refused or cut."""

    due_s: float
    prompt_tokens: int
    output_tokens: int
    sent_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    done_s: float | None = None
    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)  # between arrivals of tokens; several at once are one
    error: str | None = None


class Route(Protocol):
    """Where each request goes, for a client that spreads them itself."""

    def begin(self) -> str:
        """Base URL for the next request."""

    def end(self, base_url: str) -> None:
        """A request there has ended."""


class OneServer:
    """Every request to the same server."""

    def __init__(self, base_url: str) -> None:
        address_of(base_url)
        self._base_url = base_url

    def begin(self) -> str:
        return self._base_url

    def end(self, base_url: str) -> None:
        """Nothing is counted."""


def address_of(base_url: str) -> tuple[str, int]:
    """Host and port. Raises ValueError unless it is http://HOST:PORT."""
    parts = urlsplit(base_url)
    if parts.scheme != "http" or not parts.hostname or not parts.port:
        raise ValueError(f"base_url must be http://HOST:PORT, got {base_url!r}")
    return parts.hostname, parts.port


class LoadGenerator:
    """One replay against one server, or over a route. `records` fills up while `run` goes on."""

    def __init__(self, base_url: str | Route, requests: Sequence[TraceRequest], options: LoadOptions) -> None:
        self._route: Route = OneServer(base_url) if isinstance(base_url, str) else base_url
        self._requests = tuple(requests)
        self._options = options
        self._exchanges: set[_Exchange] = set()
        self.records: list[RequestRecord] = []
        self.lag_s = 0.0  # largest lateness of a request's sending against its due time

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet ended."""
        return len(self._exchanges)

    async def run(self, start_s: float) -> None:
        """Send every request at `start_s` + its arrival and return when all have ended.

        Cancelling hangs up on the requests in flight; their records stay unfinished.
        """
        async with asyncio.TaskGroup() as group:
            for index, request in enumerate(self._requests):
                due_s = start_s + request.arrival_s
                await asyncio.sleep(due_s - time.monotonic())
                group.create_task(self._exchange(index, request, due_s))

    async def _exchange(self, index: int, request: TraceRequest, due_s: float) -> None:
        record = RequestRecord(due_s, request.prompt_tokens, request.output_tokens)
        self.records.append(record)
        base_url = self._route.begin()
        host, port = address_of(base_url)
        exchange = _Exchange(_payload(index, request, self._options, f"{host}:{port}"), record)
        self._exchanges.add(exchange)
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: exchange, host, port)
            self.lag_s = max(self.lag_s, (record.sent_s or due_s) - due_s)
            await exchange.ended.wait()
        except (OSError, TimeoutError) as error:
            record.error = f"no connection to {host}:{port}: {error or 'timed out'}"
            record.done_s = time.monotonic()
        finally:
            exchange.hang_up()
            self._exchanges.discard(exchange)
            self._route.end(base_url)


def _payload(index: int, request: TraceRequest, options: LoadOptions, host: str) -> bytes:
    # Random tokens from a stream of their own per request: no two share a prefix, so no cache helps.
    rng = random.Random(f"{options.seed}/{index}")
    prompt = rng.choices(range(_FIRST_TOKEN_ID, _LAST_TOKEN_ID + 1), k=request.prompt_tokens)
    body: dict[str, object] = {
        "model": options.model,
        "prompt": prompt,
        "max_tokens": request.output_tokens if options.exact_lengths else options.max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.exact_lengths:
        body["ignore_eos"] = True
    elif options.length_hint:
        body["vllm_xargs"] = {"output_tokens": request.output_tokens}
    content = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class _Exchange(asyncio.Protocol):
    """One request and its stream. Events are counted, not parsed."""

    def __init__(self, payload: bytes, record: RequestRecord) -> None:
        self._payload = payload
        self._record = record
        self._tail = b""
        self._overlap = b""
        self._status: int | None = None
        self._transport: asyncio.Transport | None = None
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # what create_connection gives
        self._transport = transport
        transport.write(self._payload)
        self._payload = b""
        self._record.sent_s = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Count the tokens in what came, and see whether it was the end."""
        now_s = time.monotonic()
        self._tail += data
        # The status stands at the beginning: nothing is cut off before it was read.
        if self._status is None and not self._read_status():
            return
        self._tail = self._tail[-(_TAIL_BYTES if self._status == 200 else _ERROR_BYTES) :]
        seen = self._overlap + data
        self._overlap = seen[-(len(_EVENT) - 1) :]
        if tokens := seen.count(_EVENT):
            self._count(tokens, now_s)
        if self._status == 200 and _DONE in self._tail:
            self._finish(now_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that ended before its last event is an error."""
        record = self._record
        if record.done_s is None and self._transport is not None:
            record.done_s = time.monotonic()
            record.error = f"cut after {record.tokens} tokens: {exc or 'closed by the server'}"
            if self._status not in (200, None):
                body = self._tail.rpartition(b"\r\n\r\n")[2].decode(errors="replace")
                record.error = f"HTTP {self._status}: {body.strip()}"
        self.ended.set()

    def hang_up(self) -> None:
        """Close at once and leave the record as it is."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def _read_status(self) -> bool:
        line, found, _ = self._tail.partition(b"\r\n")
        if not found:
            return False
        words = line.split()
        self._status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        return True

    def _count(self, tokens: int, now_s: float) -> None:
        record = self._record
        if record.first_token_s is None:
            record.first_token_s = now_s
        elif record.last_token_s is not None:
            record.gaps_s.append(now_s - record.last_token_s)
        record.last_token_s = now_s
        record.tokens += tokens

    def _finish(self, now_s: float) -> None:
        self._record.done_s = now_s
        # An event may carry several tokens when the engine ran ahead: the usage is what counts.
        if usage := _USAGE.search(self._tail):
            self._record.tokens = int(usage[1])
        if self._transport is not None:
            self._transport.close()
        self.ended.set()
