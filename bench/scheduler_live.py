"""kvwatt's scheduler inside real vLLM under KV pressure, beside vLLM's own, in one run.

    python bench/scheduler_live.py [--quick] [--versions 0.27.1 0.31.0 0.32.0] [--counts] [--json FILE]

Servers: two with the same random-weight model on the CPU and 128 blocks of 32 tokens. Rounds of requests
(fresh prompts, greedy) go to one server at a time, in an order drawn by lot, so that only one of them
computes; both get the same. `mixed`: prompts and answers of lognormal lengths, 32 in flight; `equal`: 64
prompt tokens and 512 of output each, 16 in flight, all at once, where every request ends with its round.

Counts: vLLM's scheduler class driven without a model (`tests/real_vllm/bare_scheduler.py`), the time of a
step by a fixed law: what no machine's noise touches. `--counts` does these alone.

Wall time says nothing on a busy machine: the CPU time of engine and worker stands beside it. Bars of versions
and kinds are the same; options (order, admission, budget) have no bar, their effect is printed.
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

from scheduler_arms import Arm, Workload, compare  # noqa: E402 (after the path is set)
from scheduler_counts import Counted, counted, gate_cost_us, options  # noqa: E402

FEWER_PREEMPTIONS, THROUGHPUT_LOSS, STEP_US = 0.5, 0.01, 50.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 rounds of each kind instead of 20")
    parser.add_argument("--counts", action="store_true", help="no servers")
    parser.add_argument("--versions", nargs="+", default=[PINNED], choices=VERSIONS)
    parser.add_argument("--rounds", type=int, help="of each kind, instead")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    bars: list[Bar] = []
    details: dict[str, object] = {}
    for version in args.versions:
        with tempfile.TemporaryDirectory(prefix="kvwatt-sched-") as name:
            found = counted(python_of(version), Path(name), args.seed, args.quick)
            bars += count_bars(version, found)
            details[f"counts {version}"] = {kind: [c.row() for c in pair] for kind, pair in found.items()}
            print(f"vLLM {version}, options, arriving, counts:")
            chosen = options(python_of(version), Path(name), args.seed, args.quick)
            for kind, counts in chosen.items():
                print(f"  {kind}: {counts}")
            details[f"options {version}"] = {kind: counts.row() for kind, counts in chosen.items()}
            if args.counts:
                continue
            rounds = args.rounds or (6 if args.quick else 20)
            arms = compare(python_of(version), Path(name), args.seed, rounds)
            bars += server_bars(version, arms)
            details[f"servers {version}"] = {k.name: [a.row() for a in pair] for k, pair in arms.items()}
    cost_us = gate_cost_us()
    bars.append(Bar("our part of a step, 64 requests, us of CPU time", cost_us, STEP_US, "lower"))
    show(bars, "kvwatt's scheduler in real vLLM under KV pressure")
    write(args.json, bars, **details)


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
        lost = 1.0 - ours.tokens_per_s / vllm.tokens_per_s
        lost_cpu = 1.0 - ours.tokens / ours.cpu_s / (vllm.tokens / vllm.cpu_s)
        same = sum(a == b for a, b in zip(vllm.texts, ours.texts, strict=True)) / len(vllm.texts)
        name = f"{version} {kind.name}"
        bars += [
            Bar(f"{name}: preemptions avoided", avoided, FEWER_PREEMPTIONS, "higher"),
            Bar(f"{name}: throughput lost", lost, THROUGHPUT_LOSS, "lower"),
            Bar(f"{name}: tokens per CPU second lost", lost_cpu, THROUGHPUT_LOSS, "lower"),
            Bar(f"{name}: same tokens as vLLM's default", same, 1.0, "higher"),
            Bar(f"{name}: steps left to vLLM by an exception", ours.faults, 0, "lower"),
        ]
    return bars


if __name__ == "__main__":
    main()
