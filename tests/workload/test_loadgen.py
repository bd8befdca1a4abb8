from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from loop_turns import turns

from kvwatt_sim.loadgen import LoadGenerator, LoadOptions
from kvwatt_sim.traces import TraceRequest

Answer = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"id":"x","choices":[{"index":0,"text":" token","finish_reason":null}]}\n\n'


def _usage(tokens: int) -> bytes:
    return b'data: {"id":"x","choices":[],"usage":{"completion_tokens":%d}}\n\ndata: [DONE]\n\n' % tokens


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class FakeServer:
    """Answers completions with raw bytes and remembers the bodies it got."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self.bodies.append(body)
        try:
            await self._answer(body, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[FakeServer]:
    fake = FakeServer(answer)
    server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield fake
        await turns()
    await turns()


async def _whole(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    tokens = body["vllm_xargs"]["output_tokens"]
    writer.write(HEAD)
    for _ in range(tokens):
        writer.write(_chunk(TOKEN))
        await writer.drain()
        await asyncio.sleep(0.001)
    writer.write(_chunk(_usage(tokens)) + b"0\r\n\r\n")
    await writer.drain()


async def _run(fake: FakeServer, requests: list[TraceRequest], **options: Any) -> LoadGenerator:
    generator = LoadGenerator(fake.url, requests, LoadOptions(**options))
    async with asyncio.timeout(90):
        await generator.run(time.monotonic())
    return generator


async def test_every_request_is_sent_and_its_tokens_counted() -> None:
    """All requests of the workload are sent and every token of their answers is counted and timed."""
    requests = [TraceRequest(0.01 * index, 20 + index, 3 + index) for index in range(6)]
    async with serving(_whole) as fake:
        generator = await _run(fake, requests)
    assert [record.tokens for record in generator.records] == [3, 4, 5, 6, 7, 8]
    for record, request in zip(generator.records, requests, strict=True):
        assert record.error is None
        assert record.sent_s is not None and record.first_token_s is not None
        assert record.last_token_s is not None and record.done_s is not None
        assert record.due_s <= record.sent_s < record.first_token_s < record.last_token_s <= record.done_s
        assert sum(record.gaps_s) == pytest.approx(record.last_token_s - record.first_token_s)
        assert record.prompt_tokens == request.prompt_tokens


async def test_prompts_are_distinct_and_the_cap_is_not_the_length() -> None:
    """Prompts are distinct token ids of the asked length; max_tokens does not tell the true length."""
    requests = [TraceRequest(0.0, 50, 4) for _ in range(5)]
    async with serving(_whole) as fake:
        await _run(fake, requests, max_tokens=2048)
    prompts = [tuple(body["prompt"]) for body in fake.bodies]
    assert {len(prompt) for prompt in prompts} == {50}
    assert len(set(prompts)) == 5
    assert all(body["max_tokens"] == 2048 and body["stream"] for body in fake.bodies)


async def test_same_seed_sends_the_same_prompts() -> None:
    """Two servers given the same workload and seed get the same prompts."""
    requests = [TraceRequest(0.005 * index, 30, 2) for index in range(4)]
    async with serving(_whole) as one, serving(_whole) as other:
        await asyncio.gather(_run(one, requests, seed=7), _run(other, requests, seed=7))
    assert sorted(b["prompt"] for b in one.bodies) == sorted(b["prompt"] for b in other.bodies)


async def test_events_cut_anywhere_are_counted_once() -> None:
    """However the network cuts the stream, each token event counts exactly once."""

    async def drip(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        stream = HEAD + b"".join(_chunk(TOKEN) for _ in range(5)) + _chunk(_usage(5)) + b"0\r\n\r\n"
        for start in range(0, len(stream), 7):
            writer.write(stream[start : start + 7])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(drip) as fake:
        generator = await _run(fake, [TraceRequest(0.0, 5, 5)])
    assert generator.records[0].tokens == 5
    assert generator.records[0].error is None


async def test_an_answer_that_comes_in_one_piece_is_read_from_its_beginning() -> None:
    """A client that was held up finds status, tokens and end in its buffer at once."""

    async def at_once(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + 200 * _chunk(TOKEN) + _chunk(_usage(200)) + b"0\r\n\r\n")
        await writer.drain()

    async with serving(at_once) as fake:
        generator = await _run(fake, [TraceRequest(0.0, 5, 200)], exact_lengths=True)
    assert [(r.error, r.tokens) for r in generator.records] == [(None, 200)]


async def test_usage_counts_when_an_event_carries_several_tokens() -> None:
    """The engine's usage is believed over the number of events."""

    async def merged(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + _chunk(TOKEN) + _chunk(TOKEN) + _chunk(_usage(9)) + b"0\r\n\r\n")
        await writer.drain()

    async with serving(merged) as fake:
        generator = await _run(fake, [TraceRequest(0.0, 5, 9)])
    assert generator.records[0].tokens == 9


async def test_real_engines_are_told_the_length() -> None:
    """With exact lengths max_tokens is the length and the end-of-text token is ignored."""

    async def short(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + _chunk(TOKEN) + _chunk(_usage(1)) + b"0\r\n\r\n")
        await writer.drain()

    async with serving(short) as fake:
        await _run(fake, [TraceRequest(0.0, 5, 33)], exact_lengths=True)
    assert fake.bodies[0]["max_tokens"] == 33
    assert fake.bodies[0]["ignore_eos"] is True
    assert "vllm_xargs" not in fake.bodies[0]


async def test_refusals_are_recorded_with_the_servers_words() -> None:
    """A refused request is an error that carries the status and the server's message."""

    async def refuse(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 8\r\n\r\ntoo long")
        await writer.drain()

    async with serving(refuse) as fake:
        generator = await _run(fake, [TraceRequest(0.0, 5, 5)])
    assert generator.records[0].error == "HTTP 400: too long"


async def test_cut_answers_are_recorded() -> None:
    """An answer that ends before its last event is an error that tells how far it got."""

    async def cut(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + _chunk(TOKEN) + _chunk(TOKEN))
        await writer.drain()

    async with serving(cut) as fake:
        generator = await _run(fake, [TraceRequest(0.0, 5, 5)])
    assert generator.records[0].error is not None
    assert generator.records[0].error.startswith("cut after 2 tokens")


async def test_an_absent_server_is_an_error_of_the_request() -> None:
    """A server that is not there fails the request and not the generator."""
    async with serving(_whole) as fake:
        url = fake.url
    generator = LoadGenerator(url, [TraceRequest(0.0, 5, 5)], LoadOptions())
    await generator.run(time.monotonic())
    assert generator.records[0].error is not None
    assert generator.records[0].error.startswith("no connection to 127.0.0.1")


async def test_cancelling_hangs_up_and_leaves_requests_unfinished() -> None:
    """When the replay is cancelled the server sees its clients go and the requests stay unfinished."""
    flowing, gone = asyncio.Event(), asyncio.Event()

    async def endless(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        try:
            for count in range(100_000):
                writer.write(_chunk(TOKEN))
                await writer.drain()
                await asyncio.sleep(0.001)
                if count == 10:
                    flowing.set()
        except ConnectionError:
            gone.set()

    async with serving(endless) as fake:
        generator = LoadGenerator(fake.url, [TraceRequest(0.0, 5, 5)], LoadOptions())
        replay = asyncio.create_task(generator.run(time.monotonic()))
        async with asyncio.timeout(90):
            await flowing.wait()
            replay.cancel()
            with pytest.raises(asyncio.CancelledError):
                await replay
            await gone.wait()
    assert generator.records[0].error is None
    assert generator.records[0].done_s is None
    assert generator.in_flight == 0


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "https://127.0.0.1:8000", "http://127.0.0.1"])
def test_unusable_urls_are_refused(url: str) -> None:
    """Only a plain http URL with a port is accepted."""
    with pytest.raises(ValueError, match="base_url"):
        LoadGenerator(url, [], LoadOptions())
