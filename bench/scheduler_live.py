"""kvwatt's scheduler inside real vLLM under KV pressure, beside vLLM's own, in one run.

    python bench/scheduler_live.py [--quick] [--versions 0.27.1 0.31.0 0.32.0] [--counts | --same]

Engines: two of vLLM with the same random-weight model on the CPU and 128 blocks of 32 tokens, no HTTP, which
compute 40 steps each in turns (`scheduler_engines.py`). `mixed`: 96 requests with prompts and answers of
lognormal lengths, 32 in flight; `equal`: 96 of 64 prompt tokens and 512 of output, 16 in flight. Throughput
is judged here, by the ratio of wall times and, as one process has one engine and nothing in it spins, of CPU
times, which a busy machine disturbs less; `--same` has vLLM's own in both, which tells the noise.

Servers: two behind HTTP. Rounds of requests (fresh prompts, greedy) go to one server at a time, in an order
drawn by lot. On few cores HTTP decides how many requests are inside: two servers of the same kind differed
by a quarter in tokens a step, so their throughput is told and has no bar.

Counts: vLLM's scheduler class driven without a model (`tests/real_vllm/bare_scheduler.py`), the time of a
step by a fixed law: what no machine's noise touches. `--counts` does these alone.

Bars of versions and kinds are the same; options (order, admission, budget) have no bar, only their effect.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bars import Bar, show, write

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "tests" / "real_vllm"))

from vllm_versions import PINNED, VERSIONS, python_of  # noqa: E402

import scheduler_engines  # noqa: E402 (after the path is set)
from scheduler_arms import Arm, Workload, compare  # noqa: E402
from scheduler_counts import SCHEDULER, Counted, counted, gate_cost_us, options  # noqa: E402
from scheduler_engines import Turns  # noqa: E402

FEWER_PREEMPTIONS, THROUGHPUT_LOSS, STEP_US = 0.5, 0.01, 50.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="4 rounds by engines and 1 by servers, not 10 and 6"
    )
    parser.add_argument("--counts", action="store_true", help="neither engines nor servers")
    parser.add_argument("--same", action="store_true", help="engines alone, vLLM's own scheduler in both")
    parser.add_argument("--versions", nargs="+", default=[PINNED], choices=VERSIONS)
    parser.add_argument("--rounds", type=int, help="of each kind by the engines, instead")
    parser.add_argument(
        "--server-rounds", type=int, help="of each kind by the servers, instead; 0: no servers"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    bars: list[Bar] = []
    details: dict[str, object] = {}
    for version in args.versions:
        with tempfile.TemporaryDirectory(prefix="kvwatt-sched-") as name:
            if not args.same:
                bars += without_model(version, Path(name), args, details)
            if not args.counts:
                bars += with_model(version, Path(name), args, details)
    if not args.same:
        cost_us = gate_cost_us()
        bars.append(Bar("our part of a step, 64 requests, us of CPU time", cost_us, STEP_US, "lower"))
        show(bars, "kvwatt's scheduler in real vLLM under KV pressure")
    write(args.json, bars, **details)


def without_model(
    version: str, folder: Path, args: argparse.Namespace, details: dict[str, object]
) -> list[Bar]:
    """Counts, and what the options do to them."""
    python = python_of(version)
    found = counted(python, folder, args.seed, args.quick)
    details[f"counts {version}"] = {kind: [c.row() for c in pair] for kind, pair in found.items()}
    bars = count_bars(version, found)
    print(f"vLLM {version}, options, arriving, counts:")
    chosen = options(python, folder, args.seed, args.quick)
    for kind, counts in chosen.items():
        print(f"  {kind}: {counts}")
    details[f"options {version}"] = {kind: counts.row() for kind, counts in chosen.items()}
    return bars


def with_model(version: str, folder: Path, args: argparse.Namespace, details: dict[str, object]) -> list[Bar]:
    """Engines in turns, then servers."""
    python, rounds = python_of(version), args.rounds or (4 if args.quick else 10)
    schedulers = ("", "") if args.same else ("", SCHEDULER)
    turns = scheduler_engines.compare(python, folder, args.seed, rounds, schedulers)
    details[f"engines {version}"] = {k.name: t.row() for k, t in turns.items()}
    bars = engine_bars(version, turns)
    served = (1 if args.quick else 6) if args.server_rounds is None else args.server_rounds
    if args.same or not served:
        return bars
    arms = compare(python, folder, args.seed, served)
    details[f"servers {version}"] = {k.name: [a.row() for a in pair] for k, pair in arms.items()}
    return bars + server_bars(version, arms)


def engine_bars(version: str, turns: Mapping[Workload, Turns]) -> list[Bar]:
    bars = []
    for kind, found in turns.items():
        print(f"vLLM {version}, {kind.name}, engines:\n{found}", flush=True)
        name = f"{version} {kind.name}, engines"
        bars += [
            Bar(f"{name}: preemptions avoided", found.avoided, FEWER_PREEMPTIONS, "higher"),
            Bar(f"{name}: throughput lost", found.lost("busy_s")[0], THROUGHPUT_LOSS, "lower"),
            Bar(f"{name}: tokens per CPU second lost", found.lost("cpu_s")[0], THROUGHPUT_LOSS, "lower"),
            Bar(f"{name}: same tokens as vLLM's default", found.same, 1.0, "higher"),
            Bar(f"{name}: steps left to vLLM by an exception", found.faults, 0, "lower"),
        ]
    return bars


def count_bars(version: str, found: Mapping[str, tuple[Counted, Counted]]) -> list[Bar]:
    bars = []
    for kind, (vllm, ours) in found.items():
        print(f"vLLM {version}, {kind}, counts:\n  vLLM  {vllm}\n  ours  {ours}")
        avoided = 1.0 - ours.preemptions / max(vllm.preemptions, 1)
        lost = 1.0 - ours.tokens_per_s / vllm.tokens_per_s
        bars.append(
            Bar(f"{version} {kind}, counts: preemptions avoided", avoided, FEWER_PREEMPTIONS, "higher")
        )
        bars.append(Bar(f"{version} {kind}, counts: throughput lost", lost, THROUGHPUT_LOSS, "lower"))
    return bars


def server_bars(version: str, arms: Mapping[Workload, tuple[Arm, Arm]]) -> list[Bar]:
    bars = []
    for kind, (vllm, ours) in arms.items():
        print(f"vLLM {version}, {kind.name}, servers:\n  vLLM  {vllm}\n  ours  {ours}")
        avoided = 1.0 - ours.preemptions / max(vllm.preemptions, 1)
        same = sum(a == b for a, b in zip(vllm.texts, ours.texts, strict=True)) / len(vllm.texts)
        name = f"{version} {kind.name}, servers"
        bars += [
            Bar(f"{name}: preemptions avoided", avoided, FEWER_PREEMPTIONS, "higher"),
            Bar(f"{name}: same tokens as vLLM's default", same, 1.0, "higher"),
            Bar(f"{name}: steps left to vLLM by an exception", ours.faults, 0, "lower"),
        ]
    return bars


if __name__ == "__main__":
    main()
