"""What the tap costs a real vLLM server: throughput with and without it, within one run of one server.

    python bench/tap.py [--quick] [--json FILE]

vLLM runs on the CPU with a model of two layers, whose steps take a few milliseconds: more steps per second
than a GPU server makes, so the tap's share is at its largest. The tap is on or off by lot for every 16 steps
of a constant batch, all prompts are fresh, and a receiver reads the records as the daemon would. Throughput
is steps over time; means leave out a tenth at either end, where other processes held the machine; the
interval is a bootstrap over blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
from scipy.stats import trim_mean

from bars import Bar, show, write
from kvwattd.telemetry.tap import TapReceiver
from kvwattd.vllm_plugin.wire import Record
from tap_switch_layout import BATCH, BLOCK, BLOCK_STEPS, BLOCKS_ENV

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "tests" / "real_vllm"))

from plant_model import free_port  # noqa: E402 (after the path is set)
from tap_plugin import plugin_paths  # noqa: E402
from vllm_server import VllmServer, make_model, running, vllm_python  # noqa: E402

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 512
VOCABULARY = 30_000
WARM_S = 8.0
TRIMMED = 0.1
BOOTSTRAP = 2000
BAR_RATIO = 0.01

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Blocks:
    """Columns over blocks of steps."""

    on: npt.NDArray[np.bool_]
    wall_s: Floats
    cpu_s: Floats
    inside_s: Floats


@contextmanager
def server(folder: Path) -> Iterator[VllmServer]:
    """Real vLLM with the switched tap."""
    python = vllm_python()
    made = VllmServer(
        python,
        make_model(python, folder / "tiny"),
        folder / "unused.state",
        free_port(),
        folder / "vllm.log",
        environment={"KVWATT_TAP_SOCKET": str(folder / "tap.sock"), BLOCKS_ENV: str(folder / "blocks")},
        paths=[*plugin_paths(folder, "tap_switch:SwitchedTap"), BENCH],
        worker=None,
    )
    with running(made) as started:
        yield started


async def ask(client: httpx.AsyncClient, rng: random.Random) -> None:
    """One prompt never seen before, continued BATCH times: a batch that is constant but for its ends."""
    body = {
        "model": "tiny",
        "prompt": [rng.randrange(600, VOCABULARY) for _ in range(PROMPT_TOKENS)],
        "max_tokens": OUTPUT_TOKENS,
        "n": BATCH,
        "ignore_eos": True,
    }
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    told = answer.json()["usage"]["completion_tokens"]
    if told != BATCH * OUTPUT_TOKENS:
        raise RuntimeError(f"{told} tokens instead of {BATCH * OUTPUT_TOKENS}")


async def load(folder: Path, url: str, duration_s: float, seed: int) -> tuple[int, list[Record]]:
    """Ask one after the other; returns the bytes of the log that are warm-up, and the records received."""
    rng, records = random.Random(seed), list[Record]()
    receiver = TapReceiver(folder / "tap.sock", records.append)
    await receiver.start()
    async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as client:
        started_s = time.monotonic()
        while time.monotonic() < started_s + WARM_S:
            await ask(client, rng)
        warm_bytes = (folder / "blocks").stat().st_size
        records.clear()
        while time.monotonic() < started_s + WARM_S + duration_s:
            await ask(client, rng)
    await asyncio.sleep(0.2)
    receiver.close()
    return warm_bytes, records


def read_blocks(path: Path, skip_bytes: int) -> Blocks:
    rows = np.array(list(struct.iter_unpack(BLOCK, path.read_bytes()[skip_bytes:])))
    return Blocks(rows[:, 0] > 0, rows[:, 1], rows[:, 2], rows[:, 3])


def lost_share(on: npt.NDArray[np.bool_], cost: Floats, seed: int) -> tuple[float, float, float]:
    """1 - without / with, of trimmed mean costs per step, and its 95 % bootstrap interval."""
    with_tap, without = cost[on], cost[~on]
    rng = np.random.default_rng(seed)

    def resampled(values: Floats) -> Floats:
        draws = rng.integers(0, len(values), (BOOTSTRAP, len(values)))
        return np.asarray(trim_mean(values[draws], TRIMMED, axis=1))

    low, high = np.quantile(1.0 - resampled(without) / resampled(with_tap), [0.025, 0.975])
    share = 1.0 - trim_mean(without, TRIMMED) / trim_mean(with_tap, TRIMMED)
    return float(share), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one minute of load instead of four")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvwatt-tap-") as name:
        folder = Path(name)
        (folder / "blocks").touch()
        with server(folder) as started:
            duration_s = 60.0 if args.quick else 240.0
            warm_bytes, records = asyncio.run(load(folder, started.url, duration_s, args.seed))
        report(read_blocks(folder / "blocks", warm_bytes), records, args.json, args.seed)


def report(blocks: Blocks, records: list[Record], path: Path | None, seed: int) -> None:
    """Print and write the bars, and what they rest on."""
    lost, low, high = lost_share(blocks.on, blocks.wall_s, seed)
    cpu, cpu_low, cpu_high = lost_share(blocks.on, blocks.cpu_s, seed)
    on = blocks.on
    record_us = float(trim_mean(blocks.inside_s[on], TRIMMED)) / BLOCK_STEPS * 1e6
    step_ms = [float(trim_mean(blocks.wall_s[where], TRIMMED)) / BLOCK_STEPS * 1e3 for where in (~on, on)]
    share = record_us / 1e3 / step_ms[1]
    sent = records[-1].sequence - records[0].sequence + 1
    print(
        f"{on.sum()} blocks with the tap, {(~on).sum()} without, of {BLOCK_STEPS} steps of {BATCH} requests"
    )
    print(f"step: {step_ms[0]:.3f} ms without, {step_ms[1]:.3f} ms with the tap")
    print(f"throughput lost {lost:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}")
    print(f"CPU time of the API server {cpu:+.2%}, 95 % interval {cpu_low:+.2%} to {cpu_high:+.2%}")
    print(f"one record takes {record_us:.1f} us: {share:.2%} of a step")
    print(f"{len(records)} of {sent} records received")
    bars = [
        Bar("throughput lost with the tap", lost, BAR_RATIO, "lower"),
        Bar("time inside the tap / step time", share, BAR_RATIO, "lower"),
    ]
    show(bars, "tap on real vLLM")
    details = {
        "lost_interval": [low, high],
        "cpu_lost": [cpu, cpu_low, cpu_high],
        "record_us": record_us,
        "step_ms": step_ms,
        "blocks": [int((~on).sum()), int(on.sum())],
        "received_ratio": len(records) / sent,
    }
    write(path, bars, **details)


if __name__ == "__main__":
    main()
