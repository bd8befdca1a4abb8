"""What both commands of the kit share: the GPU, the load, the points, the files."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean

import pynvml
from loads import Load, NoLoad, ServerLoad, TorchLoad, sm_clock_mhz
from readings import Cost, Facts, Movement, costs, facts, movements

from kvwatt.profiles import ProfileRow
from kvwatt_sim.cards.load import names
from kvwattd.guard.nvml_session import Handle, NvmlCallError, NvmlSession
from kvwattd.profiler.rows import WindowUnusable
from kvwattd.profiler.streams import LoadError
from kvwattd.profiler.table import TableWriter
from kvwattd.telemetry.gpu import GpuUnavailable
from kvwattd.telemetry.nvml_reading import identify
from kvwattd.telemetry.poller import TelemetryError

PROBLEMS = (pynvml.NVMLError, NvmlCallError, NoLoad, LoadError, TelemetryError, GpuUnavailable, OSError)


@dataclass(frozen=True, slots=True)
class Readings:
    """The part that needs no load."""

    facts: Facts
    costs: Sequence[Cost]
    moved: Sequence[Movement]
    idle_mhz: int
    idle_w: float

    @property
    def document(self) -> dict[str, object]:
        """Everything as plain values."""
        return {
            "facts": asdict(self.facts),
            "costs": [asdict(item) for item in self.costs],
            "movements": [asdict(item) for item in self.moved],
            "now": {"clock_mhz": self.idle_mhz, "power_w": self.idle_w},
        }

    @property
    def energy_period_s(self) -> float | None:
        period_ms = self.moved[0].period_ms
        return None if period_ms is None else period_ms / 1e3


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """A command line with the flags of both commands."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="0", help="by index or UUID (nvidia-smi -L)")
    parser.add_argument("--url", help="a vLLM server on this GPU without other traffic, http://HOST:PORT")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of the PyTorch decoder")
    parser.add_argument("--hidden", type=int, default=4096, help="width of the PyTorch decoder")
    parser.add_argument("--layers", type=int, default=16, help="layers of the PyTorch decoder")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--prompts", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--window", type=float, default=2.0, help="seconds per point")
    parser.add_argument("--watch", type=float, default=10.0, help="seconds per counter")
    parser.add_argument("--last-token-id", type=int, default=31_999, help="prompts are tokens up to this")
    parser.add_argument("--like", choices=names(), default="h200", help="the card of the most similar GPU")
    parser.add_argument("--out", type=Path, default=Path("gpu-measured"), help="folder for what is written")
    return parser


def read_all(uuid: str, watch_s: float) -> Readings:
    """Facts, costs and movements of an idle or busy GPU, and what it draws now. Raises one of PROBLEMS."""
    return NvmlSession().run(uuid, "reading it", lambda handle: _read_all(handle, watch_s))


def uuid_of(selector: str) -> str:
    """Raises NvmlCallError."""
    return identify(NvmlSession(), selector)


async def open_load(options: argparse.Namespace, uuid: str) -> Load:
    """The server's where one is named, else the decoder's. Raises one of PROBLEMS."""
    if options.url:
        return await ServerLoad.open(options.url, (uuid,), options.last_token_id)
    return TorchLoad(uuid, options.device, options.hidden, options.layers)


async def points(
    load: Load, options: argparse.Namespace, table: TableWriter, target_mhz: int | None
) -> list[ProfileRow]:
    """Every batch with every context, then prompts; what does not fit is left out with the reason."""
    measuring: dict[str, Callable[[], Awaitable[ProfileRow]]] = {}
    for context in options.contexts:
        for batch in options.batches:
            decoding = partial(load.decode, batch, context, options.window, target_mhz)
            measuring[f"{batch} x {context} tokens"] = decoding
    for tokens in options.prompts:
        measuring[f"prompt {tokens}"] = partial(load.prefill, tokens, options.window, target_mhz)
    rows = []
    for name, measure in measuring.items():
        try:
            row = await measure()
        except (NoLoad, WindowUnusable) as error:
            print(f"  {name}: left out: {error}")
            continue
        rows.append(row)
        table.write(row)
        print(f"  {name}: {1e3 * row.step_time_s:.3f} ms, {row.power_w:.0f} W at {row.clock_mhz:.0f} MHz")
    return rows


def notes(found: Facts, load: Load) -> dict[str, str]:
    """For the head of the CSV, as `kvwatt train` reads it."""
    kind, _, version = load.shape.software.partition(" ")
    version = version if kind == "vLLM" else "unknown"
    return {"hardware": found.name, "vllm_version": version, "model_name": load.shape.model}


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def write_json(path: Path, document: dict[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read_all(handle: Handle, watch_s: float) -> Readings:
    found, cost, moved = facts(handle), costs(handle), movements(handle, watch_s)
    watts = [pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3 for _ in range(5)]
    return Readings(
        found,
        cost,
        moved,
        idle_mhz=sm_clock_mhz(handle),
        idle_w=fmean(watts),
    )


def show(readings: Readings) -> None:
    """The readings as a few lines."""
    f = readings.facts
    print(f"{f.name} ({f.uuid}), driver {f.driver}, NVML {f.nvml}")
    ends = f"{f.supported_mhz[0]} to {f.supported_mhz[-1]} MHz" if f.supported_mhz else "none"
    now = f"{readings.idle_mhz} MHz, {readings.idle_w:.0f} W"
    print(f"  {len(f.supported_mhz)} clocks, {ends}; limit {f.enforced_limit_w:.0f} W; now {now}")
    for cost in readings.costs:
        told = cost.error or f"{cost.median_us:.1f} us (p99 {cost.p99_us:.1f})"
        print(f"  {cost.call}: {told}")
    for moved in readings.moved:
        period = "moved too seldom to tell"
        if moved.period_ms is not None:
            period = f"every {moved.period_ms:.1f} ms, by {moved.step:g} at least"
        print(f"  {moved.what}: {period} ({moved.changes} changes in {moved.watched_s:.1f} s)")


def run(work: Coroutine[object, object, int]) -> int:
    """A command's exit status: 0 done, 1 stopped by a problem, 130 interrupted."""
    try:
        return asyncio.run(work)
    except PROBLEMS as error:
        print(f"stopped: {error}")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; what was measured so far is in the files")
        return 130
