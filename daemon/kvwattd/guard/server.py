"""The guard's service: one controller under a lease, any number of readers, and the tick that enforces it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

from kvwattd import sdnotify
from kvwattd.guard import protocol
from kvwattd.guard.clocks import ClockKeeper
from kvwattd.guard.config import GuardConfig
from kvwattd.guard.connection import Connection
from kvwattd.guard.lease import Lease
from kvwattd.guard.peers import may_operate, peer_of
from kvwattd.guard.protocol import Code, GuardError, GuardHello, GuardStatus, Message, Role
from kvwattd.guard.recorder import Recorder
from kvwattd.guard.watcher import Watcher

log = logging.getLogger(__name__)

TICK_S = 0.05
MAX_CONNECTIONS = 16
RESET_OVERDUE_S = 10.0  # every part of a reset has a deadline: one that takes longer is broken


class GuardServer:
    """Answers messages; `tick()` ends leases, retries resets and feeds the watchdog."""

    def __init__(
        self, config: GuardConfig, keeper: ClockKeeper, recorder: Recorder, stopping: asyncio.Event
    ) -> None:
        self._config = config
        self._keeper = keeper
        self._recorder = recorder
        self._lease = Lease(config.lease_s)
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._parent = os.getppid()
        self._connections: dict[int, Connection] = {}
        self._count = 0
        self._watcher = Watcher(keeper, config.hold_off_s)
        self._background: dict[asyncio.Task[None], float] = {}  # since when
        self._said = ""
        self._fed_s = 0.0
        self._watchdog_s = sdnotify.watchdog_interval_s()
        self._server: asyncio.Server | None = None
        self.stopping = stopping

    async def listen(self) -> None:
        """Raises OSError."""
        channel = bind(self._config.socket, self._config.socket_mode)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=channel, limit=protocol.MAX_MESSAGE_BYTES
        )

    async def tick(self) -> None:
        """Until stopping. Never waits for NVML or the disk, so leases end in time whatever hangs."""
        while not self.stopping.is_set():
            now_s = self._loop.time()
            if self._lease.expire(now_s, self._keeper.clocks_set):
                self._start_reset("the lease ended without renewal")
            self._keeper.retry_due(now_s)
            self._watcher.due(now_s)
            self._rewrite_record()
            if self._config.exit_on_disconnect and self._orphaned():
                log.info("the process that started this guard is gone")
                self.stopping.set()
            self._tell_systemd(now_s)
            remaining_s = self._lease.remaining_s(now_s)
            await asyncio.sleep(min(TICK_S, remaining_s) if remaining_s else TICK_S)

    async def close(self) -> None:
        """Stop listening, drop every client. The clocks are the caller's to reset."""
        if self._server is not None:
            self._server.close()
            self._config.socket.unlink(missing_ok=True)
        for connection in list(self._connections.values()):
            await connection.close()
        await self._watcher.close()
        await asyncio.gather(*self._background, return_exceptions=True)

    def status(self) -> GuardStatus:
        now_s = self._loop.time()
        holder = self._connections.get(self._lease.holder) if self._lease.holder is not None else None
        return GuardStatus(
            version=protocol.VERSION,
            uptime_s=now_s - self._started_s,
            lease_s=self._lease.duration_s,
            lease_remaining_s=self._lease.remaining_s(now_s),
            controller_pid=holder.peer.pid if holder is not None else None,
            lease_expirations=self._lease.expirations,
            rollbacks=self._keeper.rollbacks,
            gpus=self._keeper.views(),
            yields=self._watcher.yields,
            disobeyed=self._watcher.disobeyed,
            driver_reloads=self._watcher.driver_reloads,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        try:
            peer = peer_of(writer.get_extra_info("socket"))
        except OSError as error:  # the client is gone, or the kernel does not say who it is
            log.warning("a client without credentials: %s", error)
            writer.close()
            return
        connection = Connection(self._count, peer, reader, writer)
        try:
            if self.stopping.is_set():
                await connection.refuse(GuardError(Code.STOPPING, "the guard is stopping"))
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                await connection.refuse(GuardError(Code.BUSY, f"{MAX_CONNECTIONS} connections already"))
                return
            self._connections[connection.number] = connection
            if self._config.allowed.admits(peer):
                await connection.serve(self._handle)
            else:
                log.warning("pid %d (uid %d) is not allowed here", peer.pid, peer.uid)
                text = f"uid {peer.uid} is neither among the guard's `users` nor in its `groups`"
                await connection.turn_away(GuardError(Code.NOT_ALLOWED, text))
        finally:
            self._connections.pop(connection.number, None)
            if self._lease.release(connection.number):
                self._start_reset(f"controller (pid {connection.peer.pid}) disconnected")
            await connection.close()

    async def _handle(self, connection: Connection, message: Message) -> Message:
        operation = protocol.str_field(message, "op")
        if operation == "hello":
            return self._hello(connection, message)
        if not connection.greeted:
            raise GuardError(Code.HELLO_FIRST, f"op = {operation!r}: the first message must be hello")
        if self.stopping.is_set():
            raise GuardError(Code.STOPPING, "the guard is stopping; clocks go back to default")
        match operation:
            case "set":
                await self._set(connection, message)
            case "reset":
                self._lease.command(connection.number, self._loop.time())
                await self._keeper.reset(protocol.uuids_field(message, "gpus"))
            case "renew":
                self._lease.renew(connection.number, self._loop.time())
            case "status":
                return protocol.status_fields(self.status())
            case "resume":
                self._resume(connection, message)
            case _:
                known = "hello, set, reset, renew, status, resume"
                raise GuardError(Code.BAD_MESSAGE, f"op = {operation[:40]!r}: expected one of {known}")
        return {}

    def _hello(self, connection: Connection, message: Message) -> Message:
        version = protocol.int_field(message, "v")
        if version < protocol.OLDEST_CLIENT:
            spoken = f"{protocol.OLDEST_CLIENT} to {protocol.VERSION}"
            raise GuardError(Code.BAD_VERSION, f"v = {version}: this guard speaks versions {spoken}")
        role = protocol.str_field(message, "role")
        if role not in set(Role):
            raise GuardError(Code.BAD_MESSAGE, f"role = {role[:40]!r}: expected control or status")
        if role == Role.CONTROL:
            self._take_lease(connection)
        connection.greeted = True
        config = self._config
        spoken_version = min(version, protocol.VERSION)
        hello = GuardHello(spoken_version, config.lease_s, config.gpus, config.min_mhz, config.max_mhz)
        return protocol.hello_fields(hello)

    def _take_lease(self, connection: Connection) -> None:
        if self.stopping.is_set():
            raise GuardError(Code.STOPPING, "the guard is stopping")
        if self._config.exit_on_disconnect and connection.peer.pid != self._parent:
            raise GuardError(Code.BUSY, f"this guard belongs to pid {self._parent}, which started it")
        self._lease.take(connection.number, self._loop.time())
        log.info("pid %d (uid %d) controls", connection.peer.pid, connection.peer.uid)

    async def _set(self, connection: Connection, message: Message) -> None:
        uuids = protocol.uuids_field(message, "gpus")
        floor_mhz = protocol.int_field(message, "floor_mhz")
        target_mhz = protocol.int_field(message, "target_mhz")
        self._lease.command(connection.number, self._loop.time())
        low, high = self._config.min_mhz, self._config.max_mhz
        if not low <= floor_mhz <= target_mhz <= high:
            raise GuardError(
                Code.REFUSED_CLOCK,
                f"floor_mhz = {floor_mhz}, target_mhz = {target_mhz}: "
                f"expected {low} <= floor_mhz <= target_mhz <= {high}",
            )
        await self._keeper.set_group(uuids, floor_mhz, target_mhz)

    def _resume(self, connection: Connection, message: Message) -> None:
        if not may_operate(connection.peer):
            raise GuardError(Code.NOT_ALLOWED, f"uid {connection.peer.uid}: resume is root's to say")
        wanted = protocol.uuids_field(message, "gpus")
        known = {gpu.uuid: gpu for gpu in self._keeper.gpus}
        for uuid in wanted:
            if uuid not in known:
                raise GuardError(Code.UNKNOWN_GPU, f"gpus: {uuid!r} is not on this guard's list")
        for uuid in wanted:
            self._watcher.overrule(known[uuid], f"pid {connection.peer.pid} said so")

    def _orphaned(self) -> bool:
        return self._lease.holder is None and os.getppid() != self._parent

    def _start_reset(self, why: str) -> None:
        task = asyncio.ensure_future(self._keeper.reset_all(why))
        self._background[task] = self._loop.time()
        task.add_done_callback(self._reset_done)

    def _rewrite_record(self) -> None:
        """A record that could not be written is tried again, one attempt at a time."""
        if self._recorder.needs_rewrite(self._loop.time()) and not self._recorder.busy:
            task = asyncio.ensure_future(self._keeper.save_record())
            self._background[task] = self._loop.time()
            task.add_done_callback(self._reset_done)

    def _reset_done(self, task: asyncio.Task[None]) -> None:
        """A reset that broke in an unforeseen way must not be overlooked: end, and reset on the way out."""
        self._background.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.critical("reset broke", exc_info=task.exception())
            self.stopping.set()

    def _progressing(self, now_s: float) -> bool:
        """The watchdog is fed by the tick that ends leases, and only while what it starts comes to an end."""
        return all(now_s - since_s < RESET_OVERDUE_S for since_s in self._background.values())

    def _tell_systemd(self, now_s: float) -> None:
        status = self._summary()
        messages = [f"STATUS={status}"] if status != self._said else []
        fed = self._watchdog_s is None or now_s - self._fed_s < self._watchdog_s / 2
        if not fed and self._progressing(now_s):
            messages.append("WATCHDOG=1")
        if not messages:
            return
        try:
            sdnotify.notify("\n".join(messages))
        except OSError as error:  # systemd is restarting or its queue is full: tried again at the next tick
            log.warning("cannot notify systemd: %s", error)
            return
        self._said = status
        if "WATCHDOG=1" in messages:
            self._fed_s = now_s

    def _summary(self) -> str:
        gpus = self._keeper.views()
        held = [gpu for gpu in gpus if gpu.target_mhz is not None]
        faults = sum(gpu.fault is not None for gpu in gpus)
        control = "controlled" if self._lease.holder is not None else "no controller"
        alarms = sum(gpu.alarm is not None for gpu in gpus)
        told = f"{control}, {len(held)} of {len(gpus)} GPUs set, {faults} with a fault"
        return f"{told}, {alarms} with an alarm" if alarms else told


def bind(path: Path, mode: int) -> socket.socket:
    """A listening-ready socket; a stale one is replaced, a live one is not. Raises OSError."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(f"socket = {path}: another guard answers on it")
        path.unlink()
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~mode)
    try:
        channel.bind(str(path))
    except OSError as error:
        channel.close()
        raise OSError(f"socket = {path}: {error}") from None
    finally:
        os.umask(old)
    return channel
