"""Entry point of the guard: configuration -> record -> undo what was left -> serve -> undo what was set."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Mapping

import pynvml

from kvwattd import sdnotify
from kvwattd.guard.client import GuardClient
from kvwattd.guard.clocks import ClockKeeper
from kvwattd.guard.config import ConfigError, GuardConfig, build, parse_flags, record_path, with_file
from kvwattd.guard.drivers import Drivers
from kvwattd.guard.gpulocks import GpuLocks, LockHeldError
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.protocol import GuardError, Role
from kvwattd.guard.recorder import Recorder
from kvwattd.guard.server import GuardServer
from kvwattd.guard.statefile import StateFile, StateFileError
from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.logs import configure_guard_logging
from kvwattd.shortages import tell_shortages_once

log = logging.getLogger(__name__)

START_DEADLINE_S = 5.0  # the driver may have to load: seconds without persistence mode
RECOVER_DEADLINE_S = 1.0
STOP_BUDGET_S = 3.0
SHUTDOWN_DEADLINE_S = 1.0
STOP_POLL_S = 0.05
EXIT_OK, EXIT_NOT_RESET, EXIT_CONFIG, EXIT_BROKEN = 0, 1, 2, 3


def main(argv: list[str] | None = None) -> int:
    """0 after a clean end, 1 when a GPU could not be reset (it stays recorded), 2 when it cannot start."""
    configure_guard_logging()
    options, flags = parse_flags(sys.argv[1:] if argv is None else argv)
    state = StateFile(record_path(options, flags))
    if options.resume:
        return asyncio.run(_resume(options, flags))
    try:
        state.lock()
    except StateFileError as error:
        log.error("%s", error)
        return EXIT_CONFIG
    try:
        config = build(with_file(options, flags), exit_on_disconnect=options.exit_on_disconnect)
    except ConfigError as error:
        log.error("%s", error)
        status = asyncio.run(_reset_recorded(state, ()))
        return status if options.reset_recorded else EXIT_CONFIG
    if options.reset_recorded:
        return asyncio.run(_reset_recorded(state, config.gpus))
    try:
        GpuLocks(config.lock_dir).take(config.gpus)  # held until this process ends
    except LockHeldError as error:
        log.error("%s", error)
        return EXIT_CONFIG
    return asyncio.run(_run(config, state))


async def _reset_recorded(state: StateFile, allowed: tuple[str, ...]) -> int:
    """What ExecStopPost runs: undo what a killed guard left, with a broken configuration too."""
    drivers = Drivers()
    keeper, recorder = _keeper(allowed, RECOVER_DEADLINE_S, state, drivers)
    try:
        recorded = _recorded(allowed, state)
    except StateFileError:
        await keeper.close()
        return EXIT_NOT_RESET
    await keeper.recover(recorded, RECOVER_DEADLINE_S)
    await _retried(keeper, START_DEADLINE_S)  # a call that hangs is tried again in another thread
    return await _end(keeper, recorder, drivers, keeper.touched)


async def _resume(options: argparse.Namespace, flags: Mapping[str, object]) -> int:
    """The operator's word to a running guard."""
    try:
        config = build(with_file(options, flags))
        client = GuardClient(config.socket, timeout_s=START_DEADLINE_S)
        await client.connect(Role.STATUS)
        await client.resume(config.gpus)
        await client.close()
    except (ConfigError, GuardError) as error:
        log.error("%s", error)
        return EXIT_CONFIG
    return EXIT_OK


async def _run(config: GuardConfig, state: StateFile) -> int:
    tell_shortages_once()
    drivers = Drivers()
    keeper, recorder = _keeper(config.gpus, config.nvml_deadline_s, state, drivers)
    stopping = _stop_signals()
    await keeper.recover(_recorded(config.gpus, state), RECOVER_DEADLINE_S)  # retried by the tick
    await keeper.warm_up(START_DEADLINE_S)
    server = GuardServer(config, keeper, recorder, stopping)
    try:
        await server.listen()
    except OSError as error:
        log.error("%s", error)
        await _end(keeper, recorder, drivers, keeper.touched)
        return EXIT_CONFIG
    log.info("ready on %s for %s", config.socket, ", ".join(config.gpus))
    _notify("READY=1")
    sound = await _serve(server)
    _notify("STOPPING=1")
    left = await _restore(keeper)
    await server.close()
    status = await _end(keeper, recorder, drivers, left)
    return status if sound else EXIT_BROKEN


async def _serve(server: GuardServer) -> bool:
    """Until told to stop; False when the tick broke, without which no lease would ever end."""
    ticking = asyncio.ensure_future(server.tick())
    told = asyncio.ensure_future(server.stopping.wait())
    await asyncio.wait({ticking, told}, return_when=asyncio.FIRST_COMPLETED)
    server.stopping.set()
    (outcome,) = await asyncio.gather(ticking, return_exceptions=True)
    if isinstance(outcome, BaseException):
        log.critical("the lease tick broke", exc_info=outcome)
        return False
    return True


def _keeper(
    allowed: tuple[str, ...], deadline_s: float, state: StateFile, drivers: Drivers
) -> tuple[ClockKeeper, Recorder]:
    recorder = Recorder(state, on_disk=None)
    keeper = ClockKeeper(
        setters=drivers.setter,
        allowed=allowed,
        persist=recorder.persist,
        deadline_s=deadline_s,
    )
    return keeper, recorder


def _recorded(allowed: tuple[str, ...], state: StateFile) -> frozenset[str]:
    """An unreadable record counts as one of every allowed GPU: too many resets are safer than too few.

    Raises StateFileError when it is not known which those are.
    """
    try:
        return state.load()
    except StateFileError as error:
        if not allowed:
            log.error("%s; and no list of allowed GPUs to reset instead", error)
            raise
        log.error("%s; resetting every allowed GPU instead", error)
        return frozenset(allowed)


async def _restore(keeper: ClockKeeper) -> frozenset[str]:
    """Reset what is set, retrying within the stop budget; the GPUs that could not be reset."""
    await keeper.reset_all("the guard ends")
    await _retried(keeper, STOP_BUDGET_S)
    return keeper.touched


async def _retried(keeper: ClockKeeper, budget_s: float) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + budget_s
    while keeper.touched and loop.time() < until_s:
        keeper.retry_due(loop.time())
        await asyncio.sleep(STOP_POLL_S)


async def _end(keeper: ClockKeeper, recorder: Recorder, drivers: Drivers, left: frozenset[str]) -> int:
    await keeper.close()
    recorder.close()
    if left:
        log.error("could not reset %s: recorded for the next start", ", ".join(sorted(left)))
        return EXIT_NOT_RESET
    last = DeadlineWorker("nvml-shutdown")
    try:
        await last.call(drivers.close, SHUTDOWN_DEADLINE_S)
    except (pynvml.NVMLError, NvmlCallError, CallTimeoutError) as error:
        log.warning("ending the driver's library: %s", error)
    last.close()
    return EXIT_OK


def _stop_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def _notify(state: str) -> None:
    try:
        sdnotify.notify(state)
    except OSError as error:
        log.error("cannot notify systemd: %s", error)
