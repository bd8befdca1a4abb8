"""The cap ladder inside real vLLM under KV pressure, beside vLLM's own scheduler, in one run.

    python bench/scheduler_live.py [--quick] [--json FILE]

Two servers with the same random-weight model on the CPU and 128 blocks of 32 tokens. Rounds of requests
(64 prompt tokens and 512 output tokens each, fresh prompts, greedy, 16 in flight) go to one server at a
time, in an order drawn by lot, so that only one of them computes. Both get the same prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from bars import Bar, show, write

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "tests" / "real_vllm"))

from plant_model import free_port  # noqa: E402 (after the path is set)
from vllm_server import REPOSITORY, VllmServer, make_model, running, vllm_python  # noqa: E402

SCHEDULER = "kvwattd.vllm_plugin.scheduler.KvwattSyncScheduler"
BLOCKS = 128
PROMPT_TOKENS, OUTPUT_TOKENS, CONCURRENT = 64, 512, 16
VOCABULARY = 30_000
FEWER_PREEMPTIONS, THROUGHPUT_LOSS = 0.5, 0.01


@dataclass
class Arm:
    """One server and what it did."""

    url: str
    preemptions: float = 0.0
    tokens: int = 0
    busy_s: float = 0.0
    texts: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


def server(folder: Path, name: str, scheduler: str | None) -> VllmServer:
    python = vllm_python()
    model = folder / "tiny"
    if not model.exists():
        make_model(python, model)
    options: dict[str, object] = {"--num-gpu-blocks-override": BLOCKS, "--max-model-len": 1024}
    if scheduler is not None:
        options["--scheduler-cls"] = scheduler
    paths = [REPOSITORY / "predictor", REPOSITORY / "daemon"]
    unused = folder / "unused.state"
    return VllmServer(
        python, model, unused, free_port(), folder / f"{name}.log", paths=paths, worker=None, options=options
    )


async def ask(client: httpx.AsyncClient, prompt: list[int], tokens: int, arm: Arm) -> str:
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
    }
    started = time.monotonic()
    answer = await client.post(f"{arm.url}/v1/completions", json=body)
    answer.raise_for_status()
    arm.latencies_s.append(time.monotonic() - started)
    arm.tokens += answer.json()["usage"]["completion_tokens"]
    return str(answer.json()["choices"][0]["text"])


async def preemptions(client: httpx.AsyncClient, arm: Arm) -> float:
    page = (await client.get(f"{arm.url}/metrics")).text
    return sum(float(v) for v in re.findall(r"^vllm:num_preemptions_total\{[^}]*\} (\S+)", page, re.M))


async def play(arm: Arm, prompts: list[tuple[list[int], int]]) -> None:
    """One round: all at once, CONCURRENT in flight."""
    seats = asyncio.Semaphore(CONCURRENT)
    async with httpx.AsyncClient(timeout=300.0, trust_env=False) as client:
        before, started = await preemptions(client, arm), time.monotonic()

        async def one(prompt: list[int], tokens: int) -> str:
            async with seats:
                return await ask(client, prompt, tokens, arm)

        arm.texts += await asyncio.gather(*(one(p, n) for p, n in prompts))
        arm.busy_s += time.monotonic() - started
        arm.preemptions += await preemptions(client, arm) - before


def drawn(rng: random.Random, count: int) -> list[tuple[list[int], int]]:
    return [
        ([rng.randrange(600, VOCABULARY) for _ in range(PROMPT_TOKENS)], OUTPUT_TOKENS) for _ in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 rounds instead of 16")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="kvwatt-sched-") as name, ExitStack() as stack:
        folder = Path(name)
        servers = [server(folder, "vllm", None), server(folder, "ladder", SCHEDULER)]
        arms = [Arm(stack.enter_context(running(s)).url) for s in servers]
        for arm in arms:
            asyncio.run(play(Arm(arm.url), drawn(rng, 2 * CONCURRENT)))  # warm up
        for _ in range(4 if args.quick else 16):
            prompts = drawn(rng, 3 * CONCURRENT)
            for arm in rng.sample(arms, 2):
                asyncio.run(play(arm, prompts))
        told = re.findall(r"this step is left to vLLM's default", (folder / "ladder.log").read_text())
        report(*arms, faults=len(told), path=args.json)


def report(vllm: Arm, ladder: Arm, faults: int, path: Path | None) -> None:
    rates = [arm.tokens / arm.busy_s for arm in (vllm, ladder)]
    same = float(np.mean([a == b for a, b in zip(vllm.texts, ladder.texts, strict=True)]))
    for name, arm, rate in (("vLLM", vllm, rates[0]), ("cap ladder", ladder, rates[1])):
        p50, p99 = np.quantile(arm.latencies_s, [0.5, 0.99])
        print(
            f"{name:>10}: {arm.preemptions:.0f} preemptions in {len(arm.texts)} requests, "
            f"{rate:.1f} tokens/s, latency p50 {p50:.2f} s, p99 {p99:.2f} s"
        )
    bars = [
        Bar(
            "preemptions avoided",
            1.0 - ladder.preemptions / max(vllm.preemptions, 1),
            FEWER_PREEMPTIONS,
            "higher",
        ),
        Bar("throughput lost", 1.0 - rates[1] / rates[0], THROUGHPUT_LOSS, "lower"),
        Bar("same tokens as vLLM's default", same, 1.0, "higher"),
        Bar("steps left to vLLM by an exception", faults, 0, "lower"),
    ]
    show(bars, "cap ladder in real vLLM under KV pressure")
    write(path, bars, preemptions=[vllm.preemptions, ladder.preemptions], tokens_per_s=rates)


if __name__ == "__main__":
    main()
