"""vLLM's scheduler class with and without kvwatt's part, driven without a model; and what our part costs."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm_server import REPOSITORY, make_model

from kvwattd.vllm_plugin.gate import Gate, View

SCHEDULER = "kvwattd.vllm_plugin.scheduler.KvwattSyncScheduler"
BARE = REPOSITORY / "tests" / "real_vllm" / "bare_scheduler.py"
# About a GPU's: a step of 4 ms and 0.1 ms a request, 33 thousand prompt tokens a second.
COST = {"base_s": 4e-3, "decode_s": 1e-4, "prompt_token_s": 3e-5}
EQUAL_LOOPS = (64, 96, 128, 160, 192)  # requests
Request = tuple[float, int, int, int, int, int | None]


@dataclass(frozen=True)
class Counted:
    """One run."""

    preemptions: int
    steps: int
    mean_batch: float
    kv_usage: float
    computed_tokens: int
    tokens_per_s: float
    mean_s: float
    p99_s: float
    avoided: int | None
    held: int | None

    def row(self) -> dict[str, object]:
        return dict(vars(self))

    def __str__(self) -> str:
        told = "" if self.held is None else f", {self.held} held, {self.avoided} avoided by its own estimate"
        return (
            f"{self.preemptions} preemptions, {self.steps} steps, mean batch {self.mean_batch:.2f}, KV "
            f"{self.kv_usage:.0%}, {self.computed_tokens} prompt tokens computed, {self.tokens_per_s:.0f} "
            f"tokens/s, latency mean {self.mean_s:.2f} p99 {self.p99_s:.2f} s{told}"
        )


def lognormal(count: int, seed: int, rate: float | None = None, hinted: bool = False) -> list[Request]:
    """Prompts of about 90 tokens, answers of about 200, up to 1024; Poisson arrivals with a rate."""
    rng, made, now_s = random.Random(seed), list[Request](), 0.0
    for _ in range(count):
        output = max(1, min(1024, int(rng.lognormvariate(math.log(200), 0.9))))
        prompt = max(8, min(512, int(rng.lognormvariate(math.log(90), 0.8))))
        now_s += rng.expovariate(rate) if rate else 0.0
        made.append((now_s, prompt, output, 1024, 0, output if hinted else None))
    return made


def played(python: Path, model: Path, plan: list[dict[str, object]]) -> list[dict[str, object]]:
    """The plan's runs, in one process of vLLM's interpreter. Raises RuntimeError with what it said."""
    paths = [str(REPOSITORY / "predictor"), str(REPOSITORY / "daemon")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [str(python), str(BARE), str(model)]
    done = subprocess.run(
        command, input=json.dumps(plan), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{BARE.name} failed:\n{done.stderr[-3000:]}")
    found: list[dict[str, object]] = json.loads(done.stdout.split("\n@")[-1])
    return found


def summary(counts: dict[str, object], blocks: int = 128) -> Counted:
    latencies = sorted(counts["finished"].values())
    steps, told = counts["steps"], counts["told"]
    return Counted(
        counts["preemptions"],
        steps,
        counts["batch_steps"] / steps,
        counts["held_block_steps"] / steps / (blocks - 1),
        counts["computed_tokens"],
        counts["tokens"] / counts["time_s"],
        sum(latencies) / len(latencies),
        latencies[int(0.99 * len(latencies))],
        told.get("avoided_total"),
        told.get("held_total"),
    )


def merged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs as one: sums, and everybody's latency."""
    whole = {
        name: sum(run[name] for run in runs) for name in runs[0] if name not in ("finished", "order", "told")
    }
    latencies = dict(enumerate(s for run in runs for s in run["finished"].values()))
    told = {n: sum(run["told"].get(n, 0) for run in runs) for n in ("avoided_total", "held_total")}
    return {**whole, "finished": latencies, "told": told if runs[0]["told"] else {}}


def counted(python: Path, folder: Path, seed: int, quick: bool) -> dict[str, tuple[Counted, Counted]]:
    """Closed loops of mixed and of equal lengths, and arrivals at the rate that can be served.

    Equal ones end together or not as their number falls: up to 2 % of a short run's time. So loops of several
    sizes are counted as one.
    """
    model = make_model(python, folder / "counted")
    size = 1 if quick else 3
    alike: Request = (0.0, 64, 512, 512, 0, None)
    kinds: dict[str, list[dict[str, object]]] = {
        "mixed": [{"requests": lognormal(200 * size, seed), "in_flight": 32}],
        "equal": [{"requests": [alike] * count, "in_flight": 16} for count in EQUAL_LOOPS],
        "arriving": [{"requests": lognormal(200 * size, seed + 50, rate=7.5)}],
    }
    keys = [(kind, name) for kind, runs in kinds.items() for name in (None, SCHEDULER) for _ in runs]
    plan = [
        {"scheduler": s, **run, **COST} for runs in kinds.values() for s in (None, SCHEDULER) for run in runs
    ]
    done = list(zip(keys, played(python, model, plan), strict=True))

    def of(kind: str, name: str | None) -> Counted:
        return summary(merged([counts for key, counts in done if key == (kind, name)]))

    return {kind: (of(kind, None), of(kind, SCHEDULER)) for kind in kinds}


def options(python: Path, folder: Path, seed: int, quick: bool) -> dict[str, Counted]:
    """What the options do to requests that arrive at the rate that can be served.

    throttLL'eM's limits: a TBT that 12 requests keep, and an E2E that most keep.
    """
    model, size = make_model(python, folder / "options"), 200 if quick else 600
    plain, hinted = (lognormal(size, seed + 50, 7.5, hinted=hint) for hint in (False, True))
    step = {"base_s": 4e-3, "request_s": 1e-4, "kv_token_s": 0.0, "prompt_token_s": 3e-5}
    promises = {"step": step, "tbt_s": 5.25e-3, "e2e_s": 15.0}
    told: dict[str, dict[str, object] | None] = {
        "default": None,
        "hints, order of arrival": {},
        "hints, smallest first": {"order": "smallest", "age_s": 5.0},
        "throttLL'eM's admission": {"promises": promises},
        "budget of 96 blocks": {"budget_blocks": 96},
    }
    plan: list[dict[str, object]] = [{"scheduler": None, "requests": plain, **COST}]
    for name, message in told.items():
        asked = hinted if name.startswith("hints") else plain
        more = {} if message is None else {"told": {"model": "m", **message}}
        plan.append({"scheduler": SCHEDULER, "requests": asked, **COST, **more})
    runs = played(python, model, plan)
    return {name: summary(counts) for name, counts in zip(("vLLM", *told), runs, strict=True)}


def gate_cost_us(running: int = 64, rounds: int = 4000) -> float:
    """CPU time of our part of a step, in microseconds: so many run, 64 wait and the first of them is held."""
    rng, gate = random.Random(1), Gate()
    for number in range(300):
        gate.lengths.finished(str(number), rng.randrange(10, 800))
    inside, queue = ([_request(rng, n) for n in range(running)], deque(_request(rng, n) for n in range(64)))
    used = sum(-(-r.num_tokens // 16) for r in inside)
    view = View(inside, queue, used + used // 20, used // 20, 16)

    def spent(with_gate: bool) -> float:
        started_s = time.process_time()
        for _ in range(rounds):
            if with_gate:
                gate.admissible(view, None, 500.0)
            for request in inside:
                request.num_tokens += 1
                request.num_output_tokens += 1
        return time.process_time() - started_s

    return (spent(True) - spent(False)) / rounds * 1e6


def _request(rng: random.Random, number: int) -> SimpleNamespace:
    made, prompt = rng.randrange(400), rng.randrange(50, 500)
    return SimpleNamespace(
        request_id=f"{number}/{made}",
        num_tokens=prompt + made,
        num_output_tokens=made,
        num_computed_tokens=prompt + made,
        max_tokens=1 << 20,
        arrival_time=float(number),
        priority=0,
        num_preemptions=0,
        sampling_params=SimpleNamespace(extra_args=None),
    )
