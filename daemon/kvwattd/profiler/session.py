"""Composition of one profiling run: server, GPUs, guard and table, and what they say about themselves."""

from __future__ import annotations

import math
import signal
import tempfile
import time
from asyncio import current_task, get_running_loop
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from kvwatt.state import EngineSnapshot
from kvwattd.guard.protocol import GuardError, GuardHello
from kvwattd.guard.spawn import spawn_guard
from kvwattd.profiler.explore import ExploreOptions, Explorer
from kvwattd.profiler.lease import ClockLease
from kvwattd.profiler.plan import Limits, clock_ladder
from kvwattd.profiler.rows import ForeignTrafficError
from kvwattd.profiler.streams import LoadError, Target
from kvwattd.profiler.sweep import Sweep, SweepOptions, SweepReport
from kvwattd.profiler.table import TableWriter
from kvwattd.profiler.windows import Meter
from kvwattd.telemetry.gpu import GpuInfo, GpuReader, GpuUnavailable
from kvwattd.telemetry.poller import Poller, TelemetryError, new_client

_DEADLINE_S = 5.0
_LOWEST_SHARE = 0.3  # of the highest clock: below it nothing is gained on any known GPU


class SetupError(Exception):
    """Something about the server or the GPUs does not allow a sweep; the message says what."""


PROBLEMS = (
    SetupError,
    ForeignTrafficError,
    LoadError,
    GuardError,
    TelemetryError,
    GpuUnavailable,
    OSError,
)


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """What the command line asked for."""

    url: str
    gpus: tuple[str, ...]
    guard_socket: Path
    output: Path
    budget_s: float
    slo_tbt_s: float = 0.2
    slo_ttft_s: float | None = None
    clocks: int = 7
    min_mhz: int | None = None
    max_mhz: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    last_token_id: int = 31_999
    engine: str | None = None
    live: bool = False
    window_s: float = 1.2
    target_error: float = 0.03
    spawn_guard: bool = False


async def profile_server(request: ProfileRequest, progress: Callable[[str, float], None]) -> SweepReport:
    """Run the sweep. Raises one of `PROBLEMS`; SIGTERM ends it like an interrupt, with clocks reset."""
    _stop_on_sigterm()
    begin_s = time.monotonic()
    client = new_client()
    poller = Poller(request.url, _DEADLINE_S, client=client, engine=request.engine)
    reader = GpuReader(request.gpus, _DEADLINE_S)
    try:
        infos = await reader.start()
        model_name, max_model_len = await _served_model(client, request.url)
        meter = Meter(poller, reader)
        snapshot = await meter.snapshot()
        uuids = [info.uuid for info in infos]
        notes = {
            "hardware": infos[0].name,
            "vllm_version": await poller.version() or "unknown",
            "model_name": model_name,
        }
        async with _guard(request, uuids) as socket, ClockLease(socket, uuids) as lease:
            clocks = _clocks(request, infos, lease.hello)
            left_s = request.budget_s - (time.monotonic() - begin_s)
            with TableWriter(request.output, notes) as table:
                if request.live:
                    explore = _explore_options(request, left_s, len(infos))
                    return await Explorer(meter, lease, clocks, explore, table.write, progress).run()
                sweep = Sweep(
                    meter,
                    lease,
                    Target(request.url, model_name, request.last_token_id),
                    _limits(request, snapshot, max_model_len),
                    clocks,
                    _options(request, left_s, len(infos)),
                    table.write,
                    progress,
                )
                return await sweep.run()
    finally:
        reader.close()
        await poller.close()


@asynccontextmanager
async def _guard(request: ProfileRequest, uuids: Sequence[str]) -> AsyncIterator[Path]:
    """The socket of the guard to use; one of our own for as long as the sweep lasts, when told so."""
    if not request.spawn_guard:
        yield request.guard_socket
        return
    with tempfile.TemporaryDirectory(prefix="kvwatt-profile-") as folder:
        socket = Path(folder) / "guard.sock"
        child = await spawn_guard(socket, Path(folder) / "guard-state.json", uuids)
        try:
            yield socket
        finally:
            await child.stop()


def _stop_on_sigterm() -> None:
    task = current_task()
    if task is not None:
        get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _options(request: ProfileRequest, budget_s: float, tp: int) -> SweepOptions:
    return SweepOptions(
        budget_s=budget_s,
        slo_tbt_s=request.slo_tbt_s,
        slo_ttft_s=request.slo_ttft_s if request.slo_ttft_s is not None else math.inf,
        window_s=request.window_s,
        target_error=request.target_error,
        tp=tp,
        seed=time.time_ns() & 0xFFFFFFFF,  # prompts of an earlier run may still be in the prefix cache
    )


def _explore_options(request: ProfileRequest, budget_s: float, tp: int) -> ExploreOptions:
    return ExploreOptions(
        budget_s=budget_s,
        slo_tbt_s=request.slo_tbt_s,
        slo_ttft_s=request.slo_ttft_s if request.slo_ttft_s is not None else math.inf,
        tp=tp,
    )


def _limits(request: ProfileRequest, snapshot: EngineSnapshot, max_model_len: int) -> Limits:
    capacity = max(snapshot.num_blocks - 1, 1) * snapshot.block_size
    return Limits(capacity, request.max_num_seqs, request.max_num_batched_tokens, max_model_len)


def _clocks(request: ProfileRequest, infos: tuple[GpuInfo, ...], hello: GuardHello | None) -> tuple[int, ...]:
    """The ladder, from what all GPUs support within the guard's and the operator's bounds."""
    supported = sorted(set.intersection(*(set(info.supported_mhz) for info in infos)))
    if not supported or hello is None:
        raise SetupError("the GPUs have no supported clock in common")
    low = max(request.min_mhz or _LOWEST_SHARE * supported[-1], hello.min_mhz)
    high = min(request.max_mhz or supported[-1], hello.max_mhz)
    try:
        ladder = clock_ladder(supported, low, high, request.clocks)
    except ValueError as error:
        raise SetupError(f"{error}; check --min-mhz, --max-mhz and the guard's bounds") from None
    if len(ladder) < 2:
        raise SetupError(f"only {ladder[0]} MHz is permitted: at least two clocks are needed")
    return ladder


async def _served_model(client: httpx.AsyncClient, url: str) -> tuple[str, int]:
    """Name and longest context of the model. Raises SetupError."""
    try:
        response = await client.get(f"{url.rstrip('/')}/v1/models", timeout=_DEADLINE_S)
        response.raise_for_status()
        first = response.json()["data"][0]
        name, longest = first["id"], first.get("max_model_len")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
        raise SetupError(f"{url}/v1/models does not tell the served model: {error!r:.200}") from error
    if not isinstance(name, str) or not isinstance(longest, int) or longest < 2:
        raise SetupError(f"{url}/v1/models must name id and max_model_len, got {name!r:.80}, {longest!r:.20}")
    return name, longest
