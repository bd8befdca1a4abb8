"""What the guard says to clients that ask well, badly, or too much."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from guard_stage import PATIENCE_S, UUIDS, GuardStage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_turns import turns

from kvwattd.guard import protocol
from kvwattd.guard.client import GuardClient
from kvwattd.guard.protocol import Code, GuardError, Role


class Raw:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, socket: Path, hello: bool = True) -> Raw:
        raw = cls(*await asyncio.open_unix_connection(socket))
        if hello:
            assert (await raw.ask({"id": 0, "op": "hello", "v": 1, "role": "control"}))["ok"] is True
        return raw

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        return await self.send(json.dumps(message).encode() + b"\n")

    async def send(self, data: bytes) -> dict[str, Any]:
        self.writer.write(data)
        reply: dict[str, Any] = json.loads(await self.reader.readline())
        return reply

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_hello(stage: GuardStage) -> None:
    """The greeting tells version, lease, allowed GPUs and bounds."""
    await stage.start(lease_s=1.5)
    client = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    hello = await client.connect()
    assert (hello.version, hello.lease_s, list(hello.gpus)) == (2, 1.5, UUIDS)
    assert (hello.min_mhz, hello.max_mhz) == (300, 2400)
    await client.close()


@pytest.mark.parametrize(("newest", "spoken"), [(1, 1), (2, 2), (9, 2)])
async def test_versions(stage: GuardStage, newest: int, spoken: int) -> None:
    """The older of both sides' newest version is spoken."""
    await stage.start()
    raw = await Raw.open(stage.socket, hello=False)
    reply = await raw.ask({"id": 1, "op": "hello", "v": newest, "role": "control"})
    assert (reply["ok"], reply["version"]) == (True, spoken)
    await raw.close()


async def test_socket_mode(stage: GuardStage) -> None:
    """The socket is the owner's alone unless told otherwise."""
    await stage.start()
    assert stat.S_IMODE(stage.socket.stat().st_mode) == 0o600


async def test_one_controller(client: GuardClient, stage: GuardStage) -> None:
    """A second controller is refused and may retry; readers are welcome; the place is free afterwards."""
    second = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    with pytest.raises(GuardError) as refused:
        await second.connect()
    assert refused.value.code == Code.BUSY
    await second.connect(Role.STATUS)
    assert (await second.status()).controller_pid is not None
    await client.close()
    async with asyncio.timeout(PATIENCE_S):
        while (await second.status()).controller_pid is not None:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.02)
    await second.connect()
    await second.set_clocks(UUIDS[:1], 300, 900)
    await second.close()


async def test_reader_cannot_set(stage: GuardStage) -> None:
    """A status connection sets, resets and renews nothing."""
    await stage.start()
    reader = GuardClient(stage.socket, timeout_s=PATIENCE_S)
    await reader.connect(Role.STATUS)
    for call in (reader.set_clocks(UUIDS[:1], 300, 900), reader.reset(UUIDS[:1]), reader.renew()):
        with pytest.raises(GuardError) as refused:
            await call
        assert refused.value.code == Code.NOT_CONTROLLER
    assert stage.gpus.setter_log() == []
    await reader.close()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\n", Code.BAD_MESSAGE),
        (b"set the clocks\n", Code.BAD_MESSAGE),
        (b"[1]\n", Code.BAD_MESSAGE),
        (b"\xff\xfe\n", Code.BAD_MESSAGE),
        (b"[" * 9000 + b"\n", Code.BAD_MESSAGE),
        (b'{"id": 1}\n', Code.BAD_MESSAGE),
        (b'{"id": true, "op": "renew"}\n', Code.BAD_MESSAGE),
        (b'{"id": 1, "op": "fly"}\n', Code.BAD_MESSAGE),
        (b'{"id": 1, "op": "set"}\n', Code.BAD_MESSAGE),
        (b'{"id": 1, "op": "set", "gpus": [], "floor_mhz": 300, "target_mhz": 300}\n', Code.BAD_MESSAGE),
        (
            b'{"id": 1, "op": "set", "gpus": ["a", "a"], "floor_mhz": 300, "target_mhz": 300}\n',
            Code.BAD_MESSAGE,
        ),
        (b'{"id": 1, "op": "set", "gpus": [7], "floor_mhz": 300, "target_mhz": 300}\n', Code.BAD_MESSAGE),
        (b'{"id": 1, "op": "set", "gpus": ["a"], "floor_mhz": NaN, "target_mhz": 300}\n', Code.BAD_MESSAGE),
        (b'{"id": 1, "op": "set", "gpus": ["a"], "floor_mhz": 3e2, "target_mhz": 300}\n', Code.BAD_MESSAGE),
        (b'{"id": 1, "op": "set", "gpus": ["a"], "floor_mhz": true, "target_mhz": 300}\n', Code.BAD_MESSAGE),
        (b'{"id": 1, "op": "hello", "v": 0, "role": "control"}\n', Code.BAD_VERSION),
        (b'{"id": 1, "op": "hello", "v": 1, "role": "root"}\n', Code.BAD_MESSAGE),
    ],
)
async def test_bad_messages(stage: GuardStage, line: bytes, code: Code) -> None:
    """A message that makes no sense is refused with the reason, the connection goes on, nothing is set."""
    await stage.start()
    raw = await Raw.open(stage.socket)
    reply = await raw.send(line)
    assert reply["ok"] is False
    assert reply["error"]["code"] == code
    assert (await raw.ask({"id": 2, "op": "renew"})) == {"id": 2, "ok": True}
    assert stage.gpus.setter_log() == []
    await raw.close()


async def test_too_long(stage: GuardStage) -> None:
    """A message beyond the size limit ends the connection; the guard lives on."""
    await stage.start()
    raw = await Raw.open(stage.socket)
    reply = await raw.send(b"x" * (protocol.MAX_MESSAGE_BYTES + 100))
    assert reply["error"]["code"] == Code.TOO_LARGE
    assert await raw.reader.read() == b""
    await raw.close()
    await (again := GuardClient(stage.socket, timeout_s=PATIENCE_S)).connect(Role.STATUS)
    await again.close()


async def test_hello_first(stage: GuardStage) -> None:
    """Nothing is answered before the greeting."""
    await stage.start()
    raw = await Raw.open(stage.socket, hello=False)
    reply = await raw.ask({"id": 1, "op": "status"})
    assert reply["error"]["code"] == Code.HELLO_FIRST
    await raw.close()


async def test_connections_are_bounded(stage: GuardStage) -> None:
    """Beyond a number of connections newcomers are refused; the controller keeps working."""
    await stage.start()
    control = await Raw.open(stage.socket)
    others = [await Raw.open(stage.socket, hello=False) for _ in range(20)]
    for raw in others[:15]:
        await raw.ask({"id": 1, "op": "hello", "v": 1, "role": "status"})
    reply = json.loads(await others[-1].reader.readline())
    assert reply["error"]["code"] == Code.BUSY
    assert (await control.ask({"id": 2, "op": "renew"}))["ok"] is True
    for raw in [control, *others]:
        await raw.close()


async def test_no_guard(tmp_path: Path) -> None:
    """Without a guard the client says so and names the socket."""
    client = GuardClient(tmp_path / "nobody.sock", timeout_s=1.0)
    with pytest.raises(GuardError, match=r"nobody\.sock") as refused:
        await client.connect()
    assert refused.value.code == Code.UNREACHABLE


async def test_silent_guard(tmp_path: Path) -> None:
    """A guard that accepts and says nothing costs the client its deadline and no more."""
    held: list[asyncio.StreamWriter] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_unix_server(accept, tmp_path / "silent.sock")
    client = GuardClient(tmp_path / "silent.sock", timeout_s=0.2)
    with pytest.raises(GuardError) as refused:
        await client.connect()
    assert refused.value.code == Code.TIMEOUT
    await client.close()
    for writer in held:
        writer.close()
    server.close()
    await server.wait_closed()
    await turns()


BRIEF = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # shared machine


@BRIEF
@given(st.binary(max_size=400))
def test_decode_never_breaks(line: bytes) -> None:
    """Any bytes decode to an object or are refused as a bad message."""
    try:
        message = protocol.decode(line)
    except GuardError as error:
        assert error.code == Code.BAD_MESSAGE
    else:
        assert isinstance(message, dict)


@BRIEF
@given(
    st.dictionaries(
        st.sampled_from(["id", "gpus", "floor_mhz", "v", "role", "version", "lease_s", "uptime_s"]),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
        | st.lists(st.text(max_size=5) | st.integers(), max_size=4),
    )
)  # fmt: skip
def test_fields_never_break(message: dict[str, object]) -> None:
    """Fields of any type are accepted as what they should be or refused by name."""
    readers = (protocol.parse_hello, protocol.parse_status, lambda m: protocol.uuids_field(m, "gpus"))
    for read in readers:
        try:
            read(message)
        except GuardError as error:
            assert error.code == Code.BAD_MESSAGE
            assert "expected" in error.message
