"""Requests lost, hung or cut by scaling: simulated servers over real HTTP behind a real HAProxy, under load.

    python bench/scaling.py [--quick] [--events N] [--part scale|killed|rivals] [--json FILE]

Random orders (drain to sleep, drain to stop, wake, start, taken back and cancelled) to six servers under open
load, until so many scale events are done. Then the scaler is killed (SIGKILL) in every phase of a start, a
wake and a drain, under load too. Beside us what others do: stop at once, stop right after the withdrawal,
sleep at once.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from bars import Bar, show, write
from kvwatt.pool import ActionKind, MemberStatus
from scaling_killed import CYCLE, QUICK, Killed, Nursery, Task, Transition, kill_all
from scaling_load import Load, Outcome
from scaling_stage import Stage, quiet_logs

NAMES = "abcdef"
RATE_PER_S = 12.0
SCALE_INS = ("draining -> asleep", "draining -> stopped")
SCALE_OUTS = ("starting -> ready",)
# Chance per step of each order that fits a status.
CHANCES: dict[MemberStatus, list[tuple[ActionKind, float]]] = {
    MemberStatus.READY: [(ActionKind.DRAIN_TO_SLEEP, 0.35), (ActionKind.DRAIN_TO_STOP, 0.15)],
    MemberStatus.ASLEEP: [(ActionKind.WAKE, 0.6), (ActionKind.DRAIN_TO_STOP, 0.05)],
    MemberStatus.STOPPED: [(ActionKind.START, 0.6)],
    MemberStatus.DRAINING: [(ActionKind.UNDRAIN, 0.02)],
    MemberStatus.STARTING: [(ActionKind.CANCEL_START, 0.02)],
}


@dataclass
class Run:
    """What a part came to."""

    scale_ins: int
    scale_outs: int
    outcome: Outcome
    twice: int
    cut_by_stop: int
    took_s: float
    errors: dict[str, int]
    checks: str

    @property
    def events(self) -> int:
        return self.scale_ins + self.scale_outs


async def scale(events: int, seed: int, budget_s: float) -> Run:
    """Random orders under load until so many scale events are done, or the time is up."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kvwatt-scaling-") as folder:
        stage = Stage(Path(folder), NAMES)
        try:
            await _up(stage, NAMES)
            load = Load(stage.proxy.url, RATE_PER_S, seed)
            start_s = time.monotonic()
            load.start()
            told = 0
            while _done(stage) < events and time.monotonic() - start_s < budget_s:
                for member, status in stage.status().items():
                    for action, chance in CHANCES.get(status, []):
                        if rng.random() < chance:
                            await stage.order(member, action)
                            break
                await stage.step()
                if _done(stage) >= told + 100:
                    told = _done(stage)
                    Console(stderr=True).print(
                        f"{told} scale events, {time.monotonic() - start_s:.0f} s", style="dim"
                    )
            return await _result(stage, load, time.monotonic() - start_s)
        finally:
            await stage.close()


def _done(stage: Stage) -> int:
    return sum(stage.events[name] for name in SCALE_INS + SCALE_OUTS)


async def _up(stage: Stage, names: str) -> None:
    await stage.step()
    for name in names:
        await stage.order(name, ActionKind.START)
    await stage.until(len(names))
    stage.events.clear()


async def _result(stage: Stage, load: Load, took_s: float) -> Run:
    """The scaler goes on while the last requests end."""
    stopping = asyncio.create_task(load.stop())
    while not stopping.done():
        await stage.step()
    told = await stage.machine.told()
    return Run(
        scale_ins=sum(stage.events[name] for name in SCALE_INS),
        scale_outs=sum(stage.events[name] for name in SCALE_OUTS),
        outcome=stopping.result(),
        twice=sum(member["twice"] for member in told.values()),
        cut_by_stop=sum(member["cut"] for member in told.values()),
        took_s=took_s,
        errors={" ".join(key): count for key, count in stage.scaler.errors.items() if count},
        checks=stage.checks(),
    )


async def killed(cycle: Sequence[Transition], seed: int, budget_s: float) -> tuple[Killed, Run]:
    """SIGKILL in every phase, three servers, load on."""
    with tempfile.TemporaryDirectory(prefix="kvwatt-killed-") as folder:
        stage = Stage(Path(folder), "abc")
        nursery = Nursery()
        try:
            await _up(stage, "abc")
            await stage.scaler.close()
            load = Load(stage.proxy.url, RATE_PER_S / 2, seed)
            load.start()
            start_s = time.monotonic()
            journal = str(Path(folder) / "instances.json")
            base = Task(str(stage.fleet.socket), stage.fleet.urls, str(stage.proxy.socket), journal)
            found = await kill_all(nursery, base, "c", stage.machine.told, cycle, budget_s)
            return found, await _result(stage, load, time.monotonic() - start_s)
        finally:
            nursery.close()
            await stage.close()


Rival = Callable[[Stage, str], Awaitable[None]]


async def _stop_at_once(stage: Stage, member: str) -> None:
    await stage.machine.stop(member)


async def _withdraw_then_stop(stage: Stage, member: str) -> None:
    await stage.router.withdraw(member)
    await stage.machine.stop(member)


async def _sleep_at_once(stage: Stage, member: str) -> None:
    async with httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
        await client.post(f"{stage.fleet.urls[member]}/sleep?level=1&mode=abort")


RIVALS: dict[str, Rival] = {
    "stop at once (autoscaler without drain)": _stop_at_once,
    "withdraw, then stop": _withdraw_then_stop,
    "sleep at once (vLLM's default mode)": _sleep_at_once,
}


async def rival(way: Rival, most: int, seed: int, budget_s: float) -> Run:
    """The scaler stands aside while the rival takes members away, at most so often; it brings them back."""
    with tempfile.TemporaryDirectory(prefix="kvwatt-rival-") as folder:
        stage = Stage(Path(folder), "abc")
        try:
            await _up(stage, "abc")
            load = Load(stage.proxy.url, RATE_PER_S, seed)
            load.start()
            start_s = time.monotonic()
            times = 0
            while times < most and time.monotonic() - start_s < budget_s:
                number, times = times, times + 1
                member = "abc"[number % 3]
                await asyncio.sleep(0.7)
                await way(stage, member)
                await asyncio.sleep(0.7)
                await _back(stage, member)
            run = await _result(stage, load, time.monotonic() - start_s)
            run.scale_ins, run.scale_outs = times, times
            return run
        finally:
            await stage.close()


async def _back(stage: Stage, member: str) -> None:
    async with asyncio.timeout(300.0):
        for _ in range(5):  # until the scaler has seen what was done behind its back
            await stage.step()
        while stage.status()[member] is not MemberStatus.READY or not await _in(stage, member):
            status = stage.status()[member]
            if status is MemberStatus.ASLEEP:
                await stage.order(member, ActionKind.WAKE)
            elif status in (MemberStatus.STOPPED, MemberStatus.FAILED):
                await stage.order(member, ActionKind.START)
            await stage.step()


async def _in(stage: Stage, member: str) -> bool:
    return member in (await stage.router.admitted() or frozenset())


def table(rows: dict[str, Run]) -> Table:
    shown = Table(title="Scaling under load")
    for column in (
        "",
        "scale-ins",
        "scale-outs",
        "requests",
        "in full",
        "lost",
        "cut",
        "hung",
        "started twice",
        "s",
    ):
        shown.add_column(column, justify="right" if column else "left")
    for name, run in rows.items():
        o = run.outcome
        numbers = (
            run.scale_ins,
            run.scale_outs,
            o.sent,
            o.good,
            o.lost,
            o.cut,
            o.hung,
            run.twice,
            round(run.took_s),
        )
        shown.add_row(name, *map(str, numbers))
    return shown


def scale_bars(ours: Run, wanted: int) -> list[Bar]:
    return [
        Bar("scale events under load", ours.events, wanted, "higher"),
        Bar("requests lost", ours.outcome.lost, 0, "lower"),
        Bar("requests cut", ours.outcome.cut, 0, "lower"),
        Bar("requests hung", ours.outcome.hung, 0, "lower"),
        Bar("servers started twice", ours.twice, 0, "lower"),
    ]


def killed_bars(deaths: Killed, after: Run) -> list[Bar]:
    return [
        Bar("phases in which the scaler was killed", deaths.killed, deaths.asked, "higher"),
        Bar("killed: phases not adopted rightly", len(deaths.wrong), 0, "lower"),
        Bar("killed: requests lost, cut or hung", after.outcome.bad, 0, "lower"),
        Bar("killed: servers started twice", after.twice, 0, "lower"),
    ]


def verdict(rows: dict[str, Run]) -> list[str]:
    """What a log ends with."""
    return [
        f"{name}: {run.events} scale events, {run.outcome.sent} requests, {run.outcome.lost} lost, "
        f"{run.outcome.cut} cut, {run.outcome.hung} hung, {run.twice} started twice"
        for name, run in rows.items()
    ]


PARTS = ("scale", "killed", "rivals")
QUICK_PART_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="40 events, fewer kills, parts end on time: under 5 minutes"
    )
    parser.add_argument("--events", type=int, help="scale events (default 1000; with --quick 40)")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be given again")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    quiet_logs()
    wanted = given.events or (40 if given.quick else 1000)
    budget_s = QUICK_PART_S if given.quick else inf
    chosen, bars, rows, wrong = given.part or PARTS, list[Bar](), dict[str, Run](), list[str]()
    if "scale" in chosen:
        rows["kvwatt"] = asyncio.run(scale(wanted, given.seed, budget_s))
        Console(stderr=True).print(str(rows["kvwatt"]), style="dim")
        bars += scale_bars(rows["kvwatt"], wanted)
    if "killed" in chosen:
        cycle = QUICK if given.quick else CYCLE
        deaths, after = asyncio.run(killed(cycle, given.seed, budget_s))
        rows["kvwatt, scaler killed in every phase"], wrong = after, deaths.wrong
        bars += killed_bars(deaths, after)
    if "rivals" in chosen:
        for name, way in RIVALS.items():
            rows[name] = asyncio.run(rival(way, 3 if given.quick else 15, given.seed, budget_s / 3.0))
    Console(width=max(Console().width, 120)).print(table(rows))
    for name, run in rows.items():
        for example in run.outcome.examples[:2]:
            Console().print(f"{name}: {example}", style="dim")
    for phase in wrong:
        Console().print(f"not adopted rightly: {phase}")
    show(bars, "Scaling")
    Console(width=200).print("\n".join(verdict(rows)))
    document: dict[str, Any] = {name: asdict(run) for name, run in rows.items()}
    write(given.json, bars, runs=document, wrong=wrong)


if __name__ == "__main__":
    main()
