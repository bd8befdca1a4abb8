"""A scrape ends by its deadline with a snapshot or a distinct cause, and works again when the server does."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from http_fakes import Answer, always, http, serve
from vllm_pages import read_page, renamed, with_value

from kvwattd.telemetry.poller import Poller, TelemetryError


async def cause_of(answer: Answer, deadline_s: float = 20.0, max_bytes: int = 1 << 20) -> TelemetryError:
    async with serve(answer) as url:
        poller = Poller(url, deadline_s, max_bytes)
        with pytest.raises(TelemetryError) as caught:
            await poller.poll(time.monotonic)
        await poller.close()
    return caught.value


async def test_a_page_becomes_a_snapshot() -> None:
    """The snapshot carries the time at which the request was sent, not that of the answer."""
    page = read_page()
    sent = asyncio.Event()

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        assert path == "/metrics"
        sent.set()
        await asyncio.sleep(0.05)
        writer.write(http(page))

    async with serve(answer) as url:
        poller = Poller(url, 20.0)
        before_s = time.monotonic()
        poll = asyncio.create_task(poller.poll(time.monotonic))
        await sent.wait()
        arrived_s = time.monotonic()
        snapshot = await poll
        await poller.close()
    assert snapshot.running == 32
    assert poller.layout == "v0.20"
    assert before_s <= snapshot.observed_s <= arrived_s


async def test_the_connection_is_kept() -> None:
    """Scrapes after the first reuse its connection."""
    peers: set[object] = set()
    page = read_page()

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        peers.add(writer.get_extra_info("peername"))
        writer.write(http(page))

    async with serve(answer) as url:
        poller = Poller(url + "/metrics", 20.0)
        for _ in range(3):
            await poller.poll(time.monotonic)
        await poller.close()
    assert len(peers) == 1


async def test_nothing_listening_is_unreachable() -> None:
    """A port on which nothing listens is `unreachable`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    poller = Poller(url, 20.0)
    with pytest.raises(TelemetryError) as caught:
        await poller.poll(time.monotonic)
    await poller.close()
    assert caught.value.cause == "unreachable"
    assert url in caught.value.detail


async def silent(path: str, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def dripping(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 50000\r\n\r\n")
    while True:
        writer.write(b"vllm:x 1\n")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("answer", [silent, dripping])
async def test_a_slow_server_is_a_timeout(answer: Answer) -> None:
    """The deadline covers the whole scrape: a server that drips bytes does not extend it."""
    assert (await cause_of(answer, deadline_s=0.2)).cause == "timeout"


async def endless(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        writer.write(b"vllm:x 1\n" * 1000)
        await writer.drain()


async def test_a_huge_page_is_cut_off() -> None:
    """Reading stops at the size bound."""
    assert (await cause_of(endless, max_bytes=100_000)).cause == "too_large"


async def broken_off(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5000\r\n\r\nvllm:")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (always(http(b"no", "500 Internal Server Error")), "http_status"),
        (always(http(b"", "503 Service Unavailable")), "http_status"),
        (
            always(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
            "http_status",
        ),
        (always(http(b"{}", content_type="application/json")), "content_type"),
        (always(http(b"")), "not_vllm"),
        (always(http(b"\xff\x00\xfe garbage\n")), "not_vllm"),
        (broken_off, "truncated"),
        (always(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "truncated"),
    ],
)
async def test_each_fault_has_its_cause(answer: Answer, cause: str) -> None:
    """Error statuses, redirects, foreign types, empty and broken answers are told apart."""
    assert (await cause_of(answer)).cause == cause


async def test_faults_in_a_real_page_keep_their_kind() -> None:
    """What the parser refuses arrives with the parser's kind and names the series."""
    page = read_page()
    cases = {
        "truncated": page[:20_000],
        "missing_series": renamed(page, "kv_cache_usage_perc", "kv_usage"),
        "bad_value": with_value(page, "vllm:num_requests_running", "NaN"),
    }
    for kind, body in cases.items():
        error = await cause_of(always(http(body)))
        assert error.cause == kind
        assert kind == "truncated" or "vllm:" in error.detail or "num_requests" in error.detail


async def test_a_server_that_comes_back_is_read_again() -> None:
    """The same poller works again as soon as the server does."""
    page = read_page()
    async with serve(always(http(page))) as url:
        poller = Poller(url, 20.0)
        await poller.poll(time.monotonic)
    with pytest.raises(TelemetryError):
        await poller.poll(time.monotonic)
    async with serve(always(http(page)), port=int(url.rpartition(":")[2])):
        assert (await poller.poll(time.monotonic)).running == 32
    await poller.close()


async def test_the_layout_check_names_what_is_missing() -> None:
    """The self-test over HTTP reports the missing names."""
    async with serve(always(http(renamed(read_page(), "kv_cache_usage_perc", "kv_usage")))) as url:
        poller = Poller(url, 20.0)
        report = await poller.check_layout()
        await poller.close()
    assert not report.accepted
    assert report.missing == ("vllm:kv_cache_usage_perc",)


@pytest.mark.parametrize(
    ("body", "version"),
    [(b'{"version":"0.32.0"}', "0.32.0"), (b"[1]", None), (b'{"version":7}', None), (b"\xff", None)],
)
async def test_the_version_is_what_the_server_states(body: bytes, version: str | None) -> None:
    """A stated version is returned; anything else is no version."""
    async with serve(always(http(body, content_type="application/json"))) as url:
        poller = Poller(url, 20.0)
        assert await poller.version() == version
        await poller.close()


async def test_proxies_from_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment never sees a scrape."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with serve(always(http(read_page()))) as url:
        poller = Poller(url, 20.0)
        assert (await poller.poll(time.monotonic)).running == 32
        await poller.close()
