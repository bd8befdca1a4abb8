"""The clock sweep of a GPU that is yours: locks clocks, through the guard, and gives them back.

    python bench/gpu/sweep.py --i-own-this-gpu --spawn-guard --gpu 0 --out measured          # root, PyTorch
    python bench/gpu/sweep.py --i-own-this-gpu --url http://127.0.0.1:8000 --out measured    # running guard

Measures every batch and context at `--clocks` clocks, how long a switch takes, and writes profile.csv (for
`kvwatt train --profile`), readings.json and card.toml with fitted laws. The guard resets the clocks when this
program ends, however it ends; its own reset comes first.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pynvml
from hardware_card import Found, write
from loads import sm_clock_mhz
from measure import (
    notes,
    open_load,
    parser_of,
    points,
    read_all,
    run,
    show,
    today,
    uuid_of,
    write_json,
)

from kvwatt.profiles import ProfileRow
from kvwattd.guard.nvml_session import NvmlSession
from kvwattd.guard.protocol import GuardError
from kvwattd.guard.spawn import spawn_guard
from kvwattd.profiler.lease import ClockLease
from kvwattd.profiler.plan import clock_ladder
from kvwattd.profiler.table import TableWriter

SETTLE_S = 0.6  # a switch takes up to 0.5 s (arXiv 2502.20075)
SWITCH_LIMIT_S = 1.0
NEAR = 0.01
BUSY_PERCENT, IDLE_WITHIN_S = 5, 3.0
EXIT_USAGE = 2


async def sweep(options: argparse.Namespace) -> int:
    """The whole sweep. Raises one of PROBLEMS, GuardError, CancelledError; clocks are reset then too."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    uuid = uuid_of(options.gpu)
    options.out.mkdir(parents=True, exist_ok=True)
    readings = read_all(uuid, options.watch)
    show(readings)
    _refuse_busy(uuid)
    low, high = options.min_mhz or 1, options.max_mhz or max(readings.facts.supported_mhz)
    clocks = clock_ladder(readings.facts.supported_mhz, low, high, options.clocks)
    load = await open_load(options, uuid)
    rows: list[ProfileRow] = []
    switches_s: list[float] = []
    async with _guard(options, uuid) as socket, ClockLease(socket, [uuid]) as lease:
        with TableWriter(options.out / "profile.csv", notes(readings.facts, load)) as table:
            for clock in sorted(clocks, reverse=True):
                switches_s.append(await _switch(lease, uuid, clock))
                await asyncio.sleep(SETTLE_S)
                print(f"{clock} MHz:")
                rows += await points(load, options, table, clock)
                await lease.check()
    await load.close()
    alone = readings.facts.processes == 0
    seen_s = [seconds for seconds in switches_s if seconds < SWITCH_LIMIT_S]
    found = Found(
        readings.facts,
        load.shape,
        rows,
        today(),
        idle_mhz=readings.idle_mhz if alone else None,
        idle_w=readings.idle_w,
        parked_w=readings.idle_w if alone else None,
        switch_s=median(seen_s) if seen_s else None,
        energy_period_s=readings.energy_period_s,
    )
    told = {"measured": found.when, "switches_s": switches_s, **readings.document}
    write_json(options.out / "readings.json", told)
    write(options.out / "card.toml", found, options.like)
    print(f"{len(rows)} points at {len(clocks)} clocks in {options.out}/; clocks are at driver default")
    return 0 if rows else 1


@asynccontextmanager
async def _guard(options: argparse.Namespace, uuid: str) -> AsyncIterator[Path]:
    if not options.spawn_guard:
        yield options.guard_socket
        return
    with TemporaryDirectory(prefix="kvwatt-sweep-") as folder:
        socket = Path(folder) / "guard.sock"
        child = await spawn_guard(socket, Path(folder) / "guard-state.json", [uuid])
        try:
            yield socket
        finally:
            await child.stop()


async def _switch(lease: ClockLease, uuid: str, clock_mhz: int) -> float:
    """Set the clock; seconds until it is read back, the limit where an idle GPU does not show it."""
    session, begin_s = NvmlSession(), time.monotonic()
    await lease.set(clock_mhz)
    while time.monotonic() - begin_s < SWITCH_LIMIT_S:
        seen = session.run(uuid, "reading its clock", sm_clock_mhz)
        if abs(seen / clock_mhz - 1.0) <= NEAR:
            break
        await asyncio.sleep(0.002)
    return time.monotonic() - begin_s


def _refuse_busy(uuid: str) -> None:
    """Somebody else's work would be slowed down, and would be measured. Raises OSError."""
    session, begin_s = NvmlSession(), time.monotonic()
    while (busy := session.run(uuid, "reading its load", pynvml.nvmlDeviceGetUtilizationRates).gpu) > (
        BUSY_PERCENT
    ):
        # The driver's figure is a mean over up to a second: what has just ended still shows.
        if time.monotonic() - begin_s > IDLE_WITHIN_S:
            raise OSError(f"GPU {uuid} is {busy} % busy: a sweep needs it for itself")
        time.sleep(0.1)


def _agreed(options: argparse.Namespace) -> bool:
    if not options.i_own_this_gpu:
        print("the sweep locks this GPU's clocks: say --i-own-this-gpu if nobody else depends on it; "
              "bench/gpu/check.py measures without setting anything")  # fmt: skip
        return False
    if options.yes:
        return True
    answer = input(f"lock the clocks of GPU {options.gpu} for the time of the sweep? Type yes: ")
    return answer.strip() == "yes"


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--i-own-this-gpu", action="store_true", help="nobody else depends on this GPU")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--clocks", type=int, default=8, help="how many clocks")
    parser.add_argument("--min-mhz", type=int)
    parser.add_argument("--max-mhz", type=int)
    parser.add_argument("--guard-socket", type=Path, default=Path("/run/kvwatt/guard.sock"))
    parser.add_argument("--spawn-guard", action="store_true", help="start a guard for the sweep (root)")
    options = parser.parse_args()
    if not _agreed(options):
        return EXIT_USAGE
    try:
        return run(sweep(options))
    except GuardError as error:
        print(f"stopped: {error} (start kvwatt-guard with this GPU on its list, or say --spawn-guard)")
        return 1


if __name__ == "__main__":
    sys.exit(main())
