"""A scaler over simulated servers and a real HAProxy: what bench and tests have in common."""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import sys
import time
from collections import Counter
from pathlib import Path

from kvwatt.pool import ActionKind, MemberStatus, PoolAction
from kvwattd.instances.backend import Backend
from kvwattd.instances.haproxy import HaproxyRouter, HaproxySettings
from kvwattd.instances.journal import Journal
from kvwattd.instances.probe import Probe
from kvwattd.instances.probe_http import HttpProbe
from kvwattd.instances.router import Router
from kvwattd.instances.scaler import ScaleEvent, Scaler, ScalerParams
from kvwattd.instances.vllm_sleep import SleepBackend, SleepParams
from scaling_fleet import Fleet, FleetBackend

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "haproxy"))

from haproxy_process import Haproxy

STEP_S = 0.1
# Deadlines that a busy machine keeps: what is looked for is a lost request, not a slow one.
PARAMS = ScalerParams(
    minimum=2,
    start_timeout_s=120.0,
    drain_timeout_s=300.0,
    quiet_looks=2,
    end_timeout_s=90.0,
    retry_s=5.0,
    look_timeout_s=12.0,
    call_timeout_s=60.0,
)


def parts(fleet_socket: Path, urls: dict[str, str], proxy_socket: Path) -> tuple[Backend, Router, Probe]:
    """What a scaler of these servers needs."""
    backend = SleepBackend(
        FleetBackend(fleet_socket), urls, SleepParams(look_s=10.0, sleep_s=60.0, wake_s=60.0)
    )
    router = HaproxyRouter(
        HaproxySettings([proxy_socket], "vllm", {name: name for name in urls}, timeout_s=10.0)
    )
    return backend, router, HttpProbe(urls, look_s=10.0, warm_up_s=60.0)


def scaler_of(
    backend: Backend,
    router: Router,
    probe: Probe,
    names: str,
    journal: Path | None,
    params: ScalerParams = PARAMS,
) -> Scaler:
    kinds = dict.fromkeys(names, "tp1")
    return Scaler(kinds, backend, router, probe, Journal(journal), params, time.monotonic, time.time)


class Stage:
    """Fleet, HAProxy and scaler; `names`: one letter a member."""

    def __init__(self, folder: Path, names: str, params: ScalerParams = PARAMS) -> None:
        self.fleet = Fleet(names)
        self.proxy = Haproxy(folder, self.fleet.ports, check="1s")
        self.proxy.start()
        self.machine = FleetBackend(self.fleet.socket)
        self.backend, self.router, self.probe = parts(self.fleet.socket, self.fleet.urls, self.proxy.socket)
        self.scaler = scaler_of(
            self.backend, self.router, self.probe, names, folder / "instances.json", params
        )
        self.events: Counter[str] = Counter()
        self.seen: list[ScaleEvent] = []

    async def step(self) -> None:
        await self.scaler.step()
        for event in self.scaler.take_events():
            self.seen.append(event)
            self.events[f"{event.was} -> {event.status}"] += 1
        await asyncio.sleep(STEP_S)

    async def order(self, member: str, action: ActionKind) -> bool:
        return not await self.scaler.apply([PoolAction(member, action, "bench")])

    def status(self) -> dict[str, MemberStatus]:
        return {member.name: member.status for member in self.scaler.members()}

    def checks(self) -> str:
        """What HAProxy's health checks found; a starved machine fails them, which is no doing of a scaler."""
        rows = list(csv.DictReader(io.StringIO(self.proxy.command("show stat vllm 4 -1").lstrip("# "))))
        return "; ".join(
            f"{r['svname']} {r['status']} failed {r['chkfail']} down {r['chkdown']}" for r in rows
        )

    async def until(self, count: int, limit_s: float = 300.0) -> None:
        """Until so many are READY."""
        async with asyncio.timeout(limit_s):
            while sum(s is MemberStatus.READY for s in self.status().values()) < count:
                await self.step()

    async def close(self) -> None:
        await self.scaler.close()
        await self.backend.close()
        await self.probe.close()
        self.proxy.close()
        self.fleet.close()


def quiet_logs() -> None:
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
