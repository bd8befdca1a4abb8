"""Two real vLLM servers on the CPU, one with kvwatt's scheduler, asked the same in turns."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from plant_model import free_port
from vllm_server import REPOSITORY, VllmServer, make_model, running

from scheduler_counts import SCHEDULER, lognormal

BLOCKS = 128
# With two layers, on a quiet machine, fewer than 3 of 16 requests in flight were in a step: by all signs
# HTTP and not the engine was the bottleneck, and the cache was hardly short.
LAYERS = 8
VOCABULARY = 500
FAULT = "this step is left to vLLM's default"
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Workload:
    """`equal` None: lognormal lengths."""

    name: str
    per_round: int
    in_flight: int
    equal: tuple[int, int] | None = None

    def draw(self, seed: int) -> list[tuple[list[int], int]]:
        """Prompts, and how many tokens are asked of each."""
        rng = random.Random(seed)
        if self.equal is not None:
            sizes = [self.equal] * self.per_round
        else:
            sizes = [(prompt, output) for _, prompt, output, *_ in lognormal(self.per_round, seed)]
        return [([rng.randrange(3, VOCABULARY) for _ in range(prompt)], output) for prompt, output in sizes]


KINDS = (Workload("mixed", 96, 32), Workload("equal", 48, 16, (64, 512)))


@dataclass
class Arm:
    """One server and what it did in one kind of rounds."""

    url: str
    log: Path
    preemptions: float = 0.0
    tokens: int = 0
    busy_s: float = 0.0
    cpu_s: float = 0.0
    steps: float = 0.0
    faults: int = 0
    rates: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.busy_s

    def row(self) -> dict[str, object]:
        kept = ("preemptions", "tokens", "busy_s", "cpu_s", "steps", "faults", "rates")
        return {name: getattr(self, name) for name in kept}

    def __str__(self) -> str:
        p50, p99 = np.quantile(self.latencies_s, [0.5, 0.99])
        return (
            f"{self.preemptions:.0f} preemptions in {len(self.texts)} requests, {self.steps:.0f} steps, "
            f"{self.tokens / max(self.steps, 1):.2f} tokens a step, {self.tokens_per_s:.1f} tokens/s, "
            f"{1e3 * self.cpu_s / max(self.tokens, 1):.3f} ms of CPU a token, "
            f"latency mean {np.mean(self.latencies_s):.2f} p50 {p50:.2f} p99 {p99:.2f} s"
        )


def compare(python: Path, folder: Path, seed: int, rounds: int) -> dict[Workload, tuple[Arm, Arm]]:
    """Rounds of both kinds, each to both servers, the order by lot."""
    model, rng = make_model(python, folder / "served", LAYERS), random.Random(seed)
    with ExitStack() as stack:
        servers = [
            server(python, model, folder, name, s) for name, s in (("vllm", None), ("ours", SCHEDULER))
        ]
        urls = [stack.enter_context(running(s)).url for s in servers]
        logs = [folder / "vllm.log", folder / "ours.log"]
        for log in logs:
            step_back(log)
        arms = {kind: (Arm(urls[0], logs[0]), Arm(urls[1], logs[1])) for kind in KINDS}
        for kind in KINDS:
            for url, log in zip(urls, logs, strict=True):
                asyncio.run(play(Arm(url, log), kind, kind.draw(rng.randrange(1 << 30))))  # warm up
        try:
            for _ in range(rounds):
                for kind in KINDS:
                    asked = kind.draw(rng.randrange(1 << 30))
                    for arm in rng.sample(arms[kind], 2):
                        asyncio.run(play(arm, kind, asked))
        except httpx.HTTPError as error:
            tails = "\n".join(log.read_text(errors="replace")[-6000:] for log in logs)
            raise RuntimeError(f"{error!r}; the servers' logs end with:\n{tails}") from error
        for kind in KINDS:
            arms[kind][1].faults = logs[1].read_text(errors="replace").count(FAULT)
    return arms


def server(python: Path, model: Path, folder: Path, name: str, scheduler: str | None) -> VllmServer:
    options: dict[str, object] = {"--num-gpu-blocks-override": BLOCKS, "--max-model-len": 2048}
    if scheduler is not None:
        options["--scheduler-cls"] = scheduler
    return VllmServer(
        python,
        model,
        folder / "unused.state",
        free_port(),
        folder / f"{name}.log",
        environment={
            "KVWATT_TAP_SOCKET": "",
            "VLLM_CPU_OMP_THREADS_BIND": "0",
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # no kept connection is closed as it is used again
        },
        paths=[REPOSITORY / "predictor", REPOSITORY / "daemon"],
        worker=None,
        options=options,
    )


async def play(arm: Arm, kind: Workload, asked: list[tuple[list[int], int]]) -> None:
    """One round: all at once, so many in flight."""
    seats = asyncio.Semaphore(kind.in_flight)
    async with httpx.AsyncClient(timeout=600.0, trust_env=False) as client:
        before, started_s, tokens = await totals(client, arm), time.monotonic(), arm.tokens

        async def one(prompt: list[int], output: int) -> str:
            async with seats:
                return await ask(client, prompt, output, arm)

        arm.texts += await asyncio.gather(*(one(p, n) for p, n in asked))
        spent_s = time.monotonic() - started_s
        after = await totals(client, arm)
    arm.busy_s += spent_s
    arm.rates.append((arm.tokens - tokens) / spent_s)
    arm.preemptions += after[0] - before[0]
    arm.steps += after[1] - before[1]
    arm.cpu_s += after[2] - before[2]


async def ask(client: httpx.AsyncClient, prompt: list[int], tokens: int, arm: Arm) -> str:
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    started_s = time.monotonic()
    answer = await client.post(f"{arm.url}/v1/completions", json=body)
    answer.raise_for_status()
    arm.latencies_s.append(time.monotonic() - started_s)
    content = answer.json()
    arm.tokens += content["usage"]["completion_tokens"]
    return " ".join(map(str, content["choices"][0]["token_ids"]))


async def totals(client: httpx.AsyncClient, arm: Arm) -> tuple[float, float, float]:
    """Preemptions, engine steps and CPU seconds since the start."""
    page = (await client.get(f"{arm.url}/metrics")).text

    def total(name: str) -> float:
        return sum(float(v) for v in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)", page, re.M))

    preemptions = total("vllm:num_preemptions_total")
    return preemptions, total("vllm:iteration_tokens_total_count"), engine_cpu_s(arm.log)


def engine_cpu_s(log: Path) -> float:
    """CPU time of the engine's and its worker's processes; they spin while they wait for each other."""
    spent = 0
    for pid in engine_pids(log):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        spent += int(fields[11]) + int(fields[12])
    return spent * TICK_S


def engine_pids(log: Path) -> set[int]:
    """Of the engine and its worker, whose ids vLLM writes before their lines."""
    text = log.read_text(errors="replace")
    return {int(pid) for pid in re.findall(r"(?:EngineCore|Worker)\S* pid=(\d+)", text)}


def step_back(log: Path, nicer: int = 4) -> None:
    """Let HTTP and the clients go before the engine, whose two processes spin and would fill two cores.

    Else answers and the requests that follow them are late by seconds, and the engine computes small batches.
    """
    for pid in engine_pids(log):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nicer)
