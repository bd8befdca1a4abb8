"""The daemon's end: a private socket, and nothing taken for a record that is none."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tap_records import ended, record

from kvwattd.telemetry.tap import TapError, TapReceiver, parse
from kvwattd.vllm_plugin.wire import MAX_BYTES, VERSION, Record

encode = msgspec.msgpack.encode


def cause_of(datagram: bytes) -> str:
    with pytest.raises(TapError) as caught:
        parse(datagram)
    return caught.value.cause


def changed(position: int, value: object) -> bytes:
    fields: list[Any] = msgspec.msgpack.decode(encode(record()))
    fields[position] = value
    return encode(fields)


def test_a_record_survives_the_way() -> None:
    """What was sent is what is read."""
    sent = record(finished=[ended(100, 20)], first_tokens_s=[0.1, 0.2], instance="chat")
    assert parse(encode(sent)) == sent


def test_fields_added_at_the_end_are_ignored() -> None:
    """A newer sender of the same version may tell more."""
    fields = msgspec.msgpack.decode(encode(record(finished=[ended(1, 2)])))
    assert parse(encode([*fields, "more"])) == record(finished=[ended(1, 2)])


@pytest.mark.parametrize("content", [[VERSION + 1, "quite", "different"], [0], [VERSION + 1, *[0] * 22]])
def test_another_version_is_refused_by_its_name(content: list[object]) -> None:
    """The operator is told that versions differ, whatever shape the other one has."""
    assert cause_of(encode(content)) == "version"


@pytest.mark.parametrize(
    "datagram", [b"", b"\xc1", encode({}), encode([VERSION]), encode("x"), b"\x91" * 2000]
)
def test_noise_is_malformed(datagram: bytes) -> None:
    """No bytes are taken for a record by accident."""
    assert cause_of(datagram) == "malformed"


def test_a_datagram_beyond_the_limit_is_not_even_decoded() -> None:
    """Size is checked first."""
    assert cause_of(b"\x00" * (MAX_BYTES + 1)) == "too_large"


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (10, 1.5),
        (10, -0.1),
        (10, float("nan")),
        (8, -1),
        (11, float("inf")),
        (12, -3),
        (14, -1),
        (2, float("nan")),
    ],
)
def test_impossible_values_are_refused(position: int, value: float) -> None:
    """NaN, infinity, negative counts and a cache more than full are no measurement."""
    assert cause_of(changed(position, value)) == "value"


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_do_harm(datagram: bytes) -> None:
    """Any bytes are a record or a TapError."""
    try:
        assert isinstance(parse(datagram), Record)
    except TapError as error:
        assert error.cause in {"malformed", "version", "value"}


class Stage:
    """A receiver on a socket of its own, and what it handed on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.got: list[Record] = []
        self.receiver = TapReceiver(path, self.got.append)
        self.client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, datagram: bytes) -> None:
        self.client.sendto(datagram, str(self.path))

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(90):
            while not done():  # noqa: ASYNC110 (what is waited for sets no event)
                await asyncio.sleep(0.005)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path / "tap.sock")
    await made.receiver.start()
    yield made
    made.receiver.close()
    made.client.close()
    await asyncio.sleep(0)


async def test_records_are_handed_on_in_order(stage: Stage) -> None:
    """One datagram, one record."""
    for sequence in range(1, 6):
        stage.send(encode(record(sequence=sequence)))
        await asyncio.sleep(0)
    await stage.until(lambda: len(stage.got) == 5)
    assert [item.sequence for item in stage.got] == [1, 2, 3, 4, 5]
    assert stage.receiver.records == 5


async def test_bad_datagrams_are_counted_and_dropped(stage: Stage) -> None:
    """A bad sender costs a count by cause; the good one beside it is heard."""
    for datagram in (b"noise", encode([VERSION + 1]), changed(10, 7.0), b"noise", encode(record())):
        stage.send(datagram)
        await asyncio.sleep(0.01)
    await stage.until(lambda: len(stage.got) == 1)
    assert stage.receiver.refused == {"malformed": 2, "version": 1, "value": 1}


async def test_the_socket_is_closed_to_others_and_goes_away_with_the_daemon(tmp_path: Path) -> None:
    """Owner and group may send, nobody else; the file does not outlive the receiver."""
    path = tmp_path / "tap.sock"
    receiver = TapReceiver(path, lambda _: None)
    await receiver.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    receiver.close()
    assert not path.exists()
    await asyncio.sleep(0)


async def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    """A daemon that was killed leaves its socket behind; the next one takes its place."""
    path = tmp_path / "tap.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:
        killed.bind(str(path))
    receiver = TapReceiver(path, lambda _: None)
    assert await receiver.try_start() is None
    receiver.close()
    await asyncio.sleep(0)


async def test_a_living_socket_is_left_alone(stage: Stage) -> None:
    """A second daemon does not steal the first one's tap; it is told why."""
    reason = await TapReceiver(stage.path, lambda _: None).try_start()
    assert reason is not None
    assert "another process listens" in reason
    stage.send(encode(record()))
    await stage.until(lambda: len(stage.got) == 1)


async def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    """Only a dead socket may be replaced."""
    path = tmp_path / "tap.sock"
    path.write_text("precious")
    reason = await TapReceiver(path, lambda _: None).try_start()
    assert reason is not None
    assert "no socket" in reason
    assert path.read_text() == "precious"


async def test_a_folder_that_is_missing_is_a_reason(tmp_path: Path) -> None:
    """Where the socket cannot be made the daemon is told, and goes on without."""
    reason = await TapReceiver(tmp_path / "none" / "tap.sock", lambda _: None).try_start()
    assert reason is not None
    assert "No such file" in reason
