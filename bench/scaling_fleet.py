"""Simulated vLLM servers that can be started and stopped in milliseconds: all in one process, real HTTP.

The process is the "machine": it outlives the scaler, which speaks to it over a Unix socket (`start a`,
`stop a`, `states`). A stop is as hard as a SIGKILL: what runs is cut, and counted. Sleep goes over vLLM's own
calls. Run as a program it is the machine; `Fleet` starts it, `FleetBackend` is the scaler's side.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from kvwatt.state import EngineShape
from kvwatt_sim import cards
from kvwatt_sim.engine import Engine
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import demo_uuid
from kvwatt_sim.server.app import build_app
from kvwatt_sim.server.families import Layout
from kvwatt_sim.server.gpus import GpuGroup
from kvwatt_sim.server.page import PageShape
from kvwatt_sim.server.plant import EnginePlant
from kvwatt_sim.server.protocol import Limits
from kvwatt_sim.server.sleeping import Sleeper, SleepTimes
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn

CARD = "l20"
MAX_LEN = 4096


@dataclass
class Machine:
    """One member's slot: its port is fixed, its server comes and goes."""

    name: str
    port: int
    gpu: int
    state: str = "stopped"
    starts: int = 0
    twice: int = 0  # start was asked for while it ran
    cut: int = 0  # requests that a stop cut off
    task: asyncio.Task[None] | None = None
    plant: EnginePlant | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


class Machines:
    """The servers and the socket that starts and stops them."""

    def __init__(self, ports: Mapping[str, int], gpus: Path, start_s: float, stop_s: float) -> None:
        self._gpus = gpus
        self._start_s = start_s
        self._stop_s = stop_s
        self._members = {n: Machine(n, port, i) for i, (n, port) in enumerate(ports.items())}

    async def serve(self, path: Path) -> None:
        server = await asyncio.start_unix_server(self._command, str(path))
        print("READY", flush=True)
        async with server:
            await server.serve_forever()

    async def _command(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = (await reader.readline()).decode().split()
        answer: object = "unknown command"
        if words[:1] == ["states"]:
            answer = {name: self._told(member) for name, member in self._members.items()}
        elif len(words) == 2 and words[1] in self._members:
            member = self._members[words[1]]
            answer = self._start(member) if words[0] == "start" else self._stop(member)
        writer.write(json.dumps(answer).encode())
        with suppress(OSError):
            await writer.drain()
        writer.close()

    def _told(self, member: Machine) -> dict[str, object]:
        return {"state": member.state, "starts": member.starts, "twice": member.twice, "cut": member.cut}

    def _start(self, member: Machine) -> str:
        if member.state != "stopped":
            member.twice += 1
            return "runs already"
        member.state, member.starts = "starting", member.starts + 1
        member.stopping.clear()
        member.task = asyncio.create_task(self._live(member))
        return "ok"

    def _stop(self, member: Machine) -> str:
        if member.state in ("starting", "running"):
            member.cut += member.plant.in_flight if member.plant is not None else 0
            member.state = "stopping"
            member.stopping.set()
        return "ok"

    async def _live(self, member: Machine) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(member.stopping.wait(), self._start_s)
        if not member.stopping.is_set():
            await self._run(member)
        await asyncio.sleep(self._stop_s)
        member.plant = None
        member.state = "stopped"

    async def _run(self, member: Machine) -> None:
        card = cards.load(CARD, 1)
        shape = EngineShape(16, card.num_blocks * card.block_size // 16, 64, 2048, 1)
        group = GpuGroup.open(self._gpus, (member.gpu,))
        plant = EnginePlant(Engine(shape, 0.0), card, group, PageShape("sim", shape, MAX_LEN, Layout.V0_32))
        app = build_app(
            plant, Limits("sim", MAX_LEN), Sleeper(plant, SleepTimes(0.05, 0.1), lambda share: None)
        )
        config = uvicorn.Config(
            app, http="h11", lifespan="off", log_level="error", access_log=False, backlog=512
        )
        server = uvicorn.Server(config)
        server.force_exit = True
        running = asyncio.create_task(plant.run())
        serving = asyncio.create_task(server._serve([_listen(member.port)]))
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        member.plant, member.state = plant, "running"
        await member.stopping.wait()
        server.should_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()  # as the end of a process does
        await serving
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        group.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", port))
    return listener


class FleetBackend:
    """The scaler's side of the socket: starts and stops; sleep belongs to kvwattd's own backend on top."""

    name = "fleet"
    can_sleep = False

    def __init__(self, path: Path) -> None:
        self._path = path

    async def states(self) -> Mapping[str, BackendState]:
        seen = {
            "stopped": BackendState.STOPPED,
            "starting": BackendState.STARTING,
            "running": BackendState.RUNNING,
            "stopping": BackendState.STOPPING,
        }
        return {name: seen[member["state"]] for name, member in (await self.told()).items()}

    async def told(self) -> dict[str, dict[str, Any]]:
        """Everything the machine says of its members."""
        found: dict[str, dict[str, Any]] = await self._ask("states")
        return found

    async def start(self, member: str) -> None:
        await self._ask(f"start {member}")

    async def stop(self, member: str) -> None:
        await self._ask(f"stop {member}")

    async def wake(self, member: str) -> None:
        raise BackendError(Cause.UNSUPPORTED, "the machine cannot wake")

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        raise BackendError(Cause.UNSUPPORTED, "the machine cannot sleep")

    async def close(self) -> None:
        """Nothing is held."""

    async def _ask(self, command: str) -> Any:  # noqa: ANN401  # JSON
        try:
            async with asyncio.timeout(5.0):
                reader, writer = await asyncio.open_unix_connection(str(self._path))
                writer.write(command.encode() + b"\n")
                data = await reader.read()
                writer.close()
        except (OSError, TimeoutError) as error:
            raise BackendError(Cause.UNREACHABLE, f"the machine: {error!r}") from error
        return json.loads(data)


class Fleet:
    """The machine as a process of its own."""

    def __init__(self, names: str, start_s: float = 0.4, stop_s: float = 0.1) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kvwatt-fleet-")
        folder = Path(self._folder.name)
        self.socket = folder / "fleet.sock"
        self.ports = dict(zip(names, _free_ports(len(names)), strict=True))
        spec = cards.load(CARD, 1).gpu_spec
        SimGpus.create(folder / "gpus", [spec(demo_uuid(i)) for i in range(len(names))]).close()
        command = [sys.executable, __file__, "--socket", str(self.socket), "--gpus", str(folder / "gpus")]
        command += ["--start-s", str(start_s), "--stop-s", str(stop_s)]
        command += [f"{name}={port}" for name, port in self.ports.items()]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"READY\n":
            raise RuntimeError("the fleet did not start")

    @property
    def urls(self) -> dict[str, str]:
        return {name: f"http://127.0.0.1:{port}" for name, port in self.ports.items()}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


def _free_ports(count: int) -> list[int]:
    """All held at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports = [int(held.getsockname()[1]) for held in sockets]
    for held in sockets:
        held.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--gpus", type=Path, required=True)
    parser.add_argument("--start-s", type=float, required=True)
    parser.add_argument("--stop-s", type=float, required=True)
    parser.add_argument("members", nargs="+")
    given = parser.parse_args()
    ports = {name: int(port) for name, _, port in (member.partition("=") for member in given.members)}
    asyncio.run(Machines(ports, given.gpus, given.start_s, given.stop_s).serve(given.socket))


if __name__ == "__main__":
    main()
