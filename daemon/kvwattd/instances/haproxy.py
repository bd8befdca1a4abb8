"""HAProxy as the router, through its runtime socket.

A withdrawal sets the server to `drain`, and to `maint` once it has no session left: drain lets requests with
a persistence cookie through, maintenance may cut sessions that still run (`on-marked-down
shutdown-sessions`). Every order is confirmed by reading the state back. The runtime state is lost with the
process, so the scaler compares it at every step; the servers should be `disabled` in the configuration, so
that a restarted HAProxy sends nothing to what sleeps until then (deploy/haproxy/).

With a master socket (`-W -S`) the workers of before a reload are seen too. They finish what they have, take
no orders any more ("Proxy is disabled") and may still hand a waiting request to anybody who was in service
when they were replaced: a withdrawal is confirmed once they have ended.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvwattd.instances.haproxy_socket import CONFIGURED_OUT, HaproxySocket, ServerState
from kvwattd.instances.router import RouterError
from kvwattd.together import together

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]+")


@dataclass(frozen=True, slots=True)
class HaproxySettings:
    """Where HAProxy is and what it calls our members.

    Args:
        sockets: runtime sockets (`stats socket PATH level admin`); several HAProxys are told the same.
        backend: name of the backend in HAProxy's configuration.
        servers: member -> server name there.
        masters: master sockets instead of, or besides, `sockets`.
        timeout_s: deadline of one command.
    """

    sockets: Sequence[Path]
    backend: str
    servers: Mapping[str, str]
    masters: Sequence[Path] = ()
    timeout_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.sockets and not self.masters:
            raise ValueError("haproxy: needs at least one runtime or master socket")
        for name in (self.backend, *self.servers.values()):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"haproxy: {name!r} is no name of a backend or server (letters, digits, _.:-)"
                )


class HaproxyRouter:
    """All HAProxys of the configuration as one router: in service in one is in service."""

    name = "haproxy"
    counts_sessions = True

    def __init__(self, settings: HaproxySettings) -> None:
        self._settings = settings
        self._sockets = [HaproxySocket(path, settings.timeout_s) for path in settings.sockets]
        self._masters = [HaproxySocket(path, settings.timeout_s) for path in settings.masters]
        self._ordered_in: dict[str, bool] = {}
        self._told: set[str] = set()

    async def admit(self, member: str) -> None:
        """`ready` everywhere but in workers that are on their way out; confirmed."""
        server = self._server(member)
        self._ordered_in[member] = True
        for socket in await self._current():
            await socket.order(f"set server {self._settings.backend}/{server} state ready")
            if (await self._state(socket, server)).out:
                raise RouterError("unconfirmed", f"{socket.path}: {server} is not ready though told so")

    async def withdraw(self, member: str) -> None:
        """`drain`, or `maint` where it has no session; every process is told even if one does not answer."""
        server = self._server(member)
        self._ordered_in[member] = False
        results = await asyncio.gather(
            *(self._withdraw(socket, server) for socket in await self._current()),
            *(self._gone_from(socket, server) for socket in await self._old()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def sessions(self, member: str) -> int | None:
        """Established and queued, of all processes together; None where one does not tell."""
        server = self._server(member)
        sockets = [*await self._current(), *await self._old()]
        states = await together(*(self._state(socket, server) for socket in sockets))
        counts = [state.sessions for state in states]
        return None if None in counts else sum(count for count in counts if count is not None)

    async def admitted(self) -> frozenset[str] | None:
        """Members in service; None where a process cannot be asked.

        One that is in service in some processes only is told as the opposite of what was ordered last: so it
        is ordered again.
        """
        try:
            sockets = await self._current()
            found = await together(*(s.servers(self._settings.backend) for s in sockets))
        except RouterError as error:
            log.debug("haproxy: %s", error)
            return None
        self._advise(found)
        return frozenset(m for m, server in self._settings.servers.items() if self._is_in(m, server, found))

    def _is_in(self, member: str, server: str, found: Sequence[Mapping[str, ServerState]]) -> bool:
        states = [server in servers and not servers[server].out for servers in found]
        if all(states) or not any(states):
            return all(states)
        return not self._ordered_in.get(member, True)

    async def weigh(self, weights: Mapping[str, int]) -> None:
        """Weights of 1 to 256 by member: what `leastconn` and `roundrobin` share requests by."""
        wanted = {self._server(member): weight for member, weight in weights.items()}
        for socket in await self._current():
            servers = await socket.servers(self._settings.backend)
            for server, weight in wanted.items():
                if server in servers and servers[server].weight != weight:
                    await socket.order(f"set server {self._settings.backend}/{server} weight {weight}")

    async def close(self) -> None:
        """Nothing is held."""

    def _server(self, member: str) -> str:
        try:
            return self._settings.servers[member]
        except KeyError as error:
            raise RouterError("unknown-member", f"no server is configured for {member!r}") from error

    async def _current(self) -> list[HaproxySocket]:
        """Every process that takes new connections."""
        newest = [master.worker((await master.workers())[0]) for master in self._masters]
        return [*self._sockets, *newest]

    async def _old(self) -> list[HaproxySocket]:
        """Workers of before a reload that have not ended."""
        return [master.worker(pid) for master in self._masters for pid in (await master.workers())[1:]]

    async def _gone_from(self, socket: HaproxySocket, server: str) -> None:
        if not (await self._state(socket, server)).out:
            told = f"{socket.path}: a worker of before a reload still finishes its requests"
            raise RouterError("unconfirmed", told)

    async def _withdraw(self, socket: HaproxySocket, server: str) -> None:
        order = f"set server {self._settings.backend}/{server} state "
        if not (await self._state(socket, server)).out:
            await socket.order(order + "drain")
        state = await self._state(socket, server)
        if state.sessions == 0 and not state.maintenance:
            await socket.order(order + "maint")
            state = await self._state(socket, server)
        if not state.out:
            raise RouterError(
                "unconfirmed", f"{socket.path}: {server} is still in service though told to drain"
            )

    async def _state(self, socket: HaproxySocket, server: str) -> ServerState:
        servers = await socket.servers(self._settings.backend)
        if server not in servers:
            detail = f"{socket.path}: backend {self._settings.backend} has no server {server!r}"
            raise RouterError("unknown-member", detail)
        return servers[server]

    def _advise(self, found: Sequence[Mapping[str, ServerState]]) -> None:
        """Say once of each server that a restarted HAProxy would send to it before we can say no."""
        ours = set(self._settings.servers.values())
        for servers in found:
            for name in ours & set(servers) - self._told:
                self._told.add(name)
                if not servers[name].admin & CONFIGURED_OUT:
                    log.warning(
                        "haproxy: %s is not `disabled` in the configuration: after a restart of HAProxy it "
                        "gets requests, asleep or not, until the next step",
                        name,
                    )
