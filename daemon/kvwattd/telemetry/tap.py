"""Receives the tap's records: a unix datagram socket that the daemon owns, read on its event loop.

Nothing is queued here but by the kernel: a record is checked and handed on as it comes in, and a sender that
outruns the daemon loses records, which are counted. A datagram that is no record is counted and dropped.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from math import inf, isfinite
from pathlib import Path
from typing import Final

import msgspec

from kvwattd.vllm_plugin.wire import MAX_BYTES, SCHEDULER_VERSION, VERSION, Record, SchedulerRecord

log = logging.getLogger(__name__)

SOCKET_MODE: Final = 0o660
LONGEST_S: Final = 86_400.0
MOST_TOKENS: Final = 1 << 32
ARRAY16: Final = b"\xdc"  # msgpack's header of 16 and more elements, whose number is two bytes
SCHEDULERS: Final = bytes([SCHEDULER_VERSION])
MOST_REASONS: Final = 16
MOST_SECONDS: Final = float(1 << 40)  # of a wall clock
# Bad UTF-8, deep nesting and keys that cannot be hashed are no DecodeError.
UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError, TypeError)
_RECORD: Final = msgspec.msgpack.Decoder(Record)
_SCHEDULER: Final = msgspec.msgpack.Decoder(SchedulerRecord)
_ANYTHING: Final = msgspec.msgpack.Decoder()


class TapError(Exception):
    """A datagram that is of no use.

    `cause`: too_large, malformed, version, value; or, from who it is for: unknown_instance, ambiguous.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


def parse(datagram: bytes) -> Record | SchedulerRecord:
    """The record in a datagram: of a step, or of the scheduler. Raises TapError."""
    if len(datagram) > MAX_BYTES:
        raise TapError("too_large", f"{len(datagram)} bytes; at most {MAX_BYTES} are accepted")
    if datagram[:1] == ARRAY16 and datagram[3:4] == SCHEDULERS:
        return _scheduler(datagram)
    try:
        record = _RECORD.decode(datagram)
    except UNREADABLE as error:
        raise _not_a_record(datagram, error) from error
    if record.version != VERSION:
        raise _other_version(record.version)
    _check_values(record)
    return record


def _scheduler(datagram: bytes) -> SchedulerRecord:
    try:
        record = _SCHEDULER.decode(datagram)
    except UNREADABLE as error:
        raise _not_a_record(datagram, error) from error
    for name in ("steps", "cap_tokens", "horizon_steps", "held", "held_total", "avoided_total"):
        _within(name, getattr(record, name), inf if name == "steps" else MOST_TOKENS)
    for name in ("faults_total", "message_errors", "sent_s", "engine", "sender"):
        _within(name, getattr(record, name), inf if name == "sent_s" else MOST_TOKENS)
    if len(record.held_steps) > MOST_REASONS:
        raise TapError("value", f"held_steps has {len(record.held_steps)} reasons; at most {MOST_REASONS}")
    for reason, steps in record.held_steps.items():
        _within(f"held_steps[{reason[:20]!r}]", steps, inf)
    return record


def _not_a_record(datagram: bytes, error: Exception) -> TapError:
    """Another version may well have another shape: tell it apart from noise."""
    try:
        content = _ANYTHING.decode(datagram)
    except UNREADABLE:
        return TapError("malformed", str(error))
    if isinstance(content, list) and content and type(content[0]) is int and content[0] != VERSION:
        return _other_version(content[0])
    return TapError("malformed", str(error))


def _other_version(version: int) -> TapError:
    advice = "install the daemon's version of kvwatt in vLLM's environment"
    return TapError("version", f"record of version {version}; version {VERSION} is understood: {advice}")


def _check_values(record: Record) -> None:
    counts = ("sequence", "sender", "servers", "engine", "running", "waiting", "decodes", "generation_tokens")
    totals = ("prompt_tokens", "chunk_tokens", "preempted", "generation_tokens_total", "finished_total")
    for name in (*counts, *totals, "dropped_total"):
        _within(name, getattr(record, name), MOST_TOKENS if name in counts else inf)
    for name in ("step_s", "itl_sum_s", "sent_s"):
        _within(name, getattr(record, name), inf if name == "sent_s" else LONGEST_S * MOST_TOKENS)
    _within("kv_usage", record.kv_usage, 1.0)
    _within("decode_steps_total", record.decode_steps_total, inf)
    _within("wall_s", record.wall_s, MOST_SECONDS)
    for wait_s in record.first_tokens_s:
        _within("first_tokens_s", wait_s, LONGEST_S)
    for group in record.started:
        _within("started.at_s", group.at_s, MOST_SECONDS)
        _within("started.decode_step", group.decode_step, inf)
        _within("started.prompt_tokens", group.prompt_tokens, MOST_TOKENS)
        for wait_s in group.ttft_s:
            _within("started.ttft_s", wait_s, LONGEST_S)
    for item in record.finished:
        _within("finished.prompt_tokens", item.prompt_tokens, MOST_TOKENS)
        _within("finished.output_tokens", item.output_tokens, MOST_TOKENS)
        _within("finished.max_tokens", item.max_tokens, MOST_TOKENS)
        _within("finished.arrival_s", item.arrival_s, MOST_SECONDS)


def _within(name: str, value: float | None, most: float) -> None:
    if value is None or (isfinite(value) and 0 <= value <= most):
        return
    raise TapError("value", f"{name} is {value!r}; accepted: 0 to {most:g}")


class TapReceiver(asyncio.DatagramProtocol):
    """`deliver` gets each record that is in order, `scheduler` a scheduler's; both may raise TapError."""

    def __init__(
        self,
        path: Path,
        deliver: Callable[[Record], None],
        scheduler: Callable[[SchedulerRecord], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._scheduler = scheduler
        self._deliver = deliver
        self._transport: asyncio.DatagramTransport | None = None
        self._inode: int | None = None
        self.records = 0
        self.refused: Counter[str] = Counter()
        self.last_refusal: str | None = None

    async def try_start(self) -> str | None:
        """Listen; returns why that is not possible, None when it listens."""
        try:
            await self.start()
        except OSError as error:
            return f"{self._path}: {error.strerror or error}"
        return None

    async def start(self) -> None:
        """Listen. Raises OSError where the socket cannot be made or another process listens on it."""
        sock = _bound(self._path)
        try:
            self._inode = self._path.stat().st_ino
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=sock)
        except BaseException:
            sock.close()
            raise
        log.info("tap: listening on %s", self._path)

    def close(self) -> None:
        """Stop listening and take the socket away, if it is still ours."""
        if self._transport is None:
            return
        self._transport.close()
        self._transport = None
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except OSError as error:
            log.info("tap: %s was already gone: %s", self._path, error.strerror)

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Check one datagram and hand it on."""
        try:
            record = parse(data)
            if isinstance(record, SchedulerRecord):
                self._scheduler(record)
            else:
                self._deliver(record)
                self.records += 1
        except TapError as error:
            self._refuse(error)

    def error_received(self, exc: Exception) -> None:
        """Reading failed; the endpoint goes on."""
        self._refuse(TapError("socket", str(exc)))

    def _refuse(self, error: TapError) -> None:
        if not self.refused[error.cause]:
            log.warning("tap: record refused: %s (told once per cause)", error)
        self.refused[error.cause] += 1
        self.last_refusal = str(error)


def _bound(path: Path) -> socket.socket:
    """A bound socket that only its owner and its group may send to; a dead one in its place is replaced."""
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        os.fchmod(sock.fileno(), 0o600)  # as it is bound: never open to others, not even for a moment
        sock.bind(str(path))
        path.chmod(SOCKET_MODE)
    except BaseException:
        sock.close()
        raise
    return sock


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises OSError for anything else that is in the way."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "in the way of the tap's socket and no socket", str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process listens on the tap's socket", str(path))
