"""Two real vLLM engines without servers, one with kvwatt's scheduler, in turns of a few steps.

Without HTTP nothing but the scheduler decides how many requests are inside, and as both compute a fifth of
a second each, in turns, whatever else the machine does falls on both alike: the ratio of their times is told.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_server import REPOSITORY, make_model

from scheduler_arms import BLOCKS, LAYERS, Workload
from scheduler_counts import SCHEDULER

CHILD = REPOSITORY / "tests" / "real_vllm" / "engine_turns.py"
TURN_STEPS = 40
# Longer rounds than over HTTP, so that their ends, where the cache empties, weigh less.
KINDS = (Workload("mixed", 96, 32), Workload("equal", 96, 16, (64, 512)))
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)  # Student's, 1 to 10 degrees of freedom


class Engine:
    """A child process with one engine."""

    def __init__(self, python: Path, model: Path, log: Path, scheduler: str) -> None:
        paths = os.pathsep.join(str(REPOSITORY / part) for part in ("predictor", "daemon"))
        environment = os.environ | {
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "KVWATT_TAP_SOCKET": "",
        }
        self._log = log
        with log.open("w") as sink:
            self._process = subprocess.Popen(
                [str(python), str(CHILD), str(model), scheduler, str(BLOCKS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=environment,
                text=True,
            )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def begin(self, kind: Workload, asked: Sequence[tuple[list[int], int]]) -> None:
        """A round."""
        self._tell({"in_flight": kind.in_flight, "asked": asked})

    def turn(self, steps: int) -> dict[str, Any]:
        """So many steps; what is done so far. Raises RuntimeError with the log's end when the engine died."""
        self._tell(steps)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                found: dict[str, Any] = json.loads(line[1:])
                return found
        tail = self._log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"an engine ended; its log ends with:\n{tail}")

    def _tell(self, wish: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()


@dataclass
class Turns:
    """What both did in one kind of rounds: two `engine_turns.Done` a round, vLLM's own and ours."""

    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)

    def total(self, arm: int, name: str) -> float:
        return sum(float(pair[arm][name]) for pair in self.rounds)

    @property
    def avoided(self) -> float:
        return 1.0 - self.total(1, "preemptions") / max(self.total(0, "preemptions"), 1.0)

    @property
    def faults(self) -> int:
        """Steps of ours that an exception left to vLLM, since the start."""
        return max((ours["faults"] for _, ours in self.rounds), default=0)

    @property
    def same(self) -> float:
        pairs = [(a["texts"][n], b["texts"][n]) for a, b in self.rounds for n in a["texts"]]
        return sum(a == b for a, b in pairs) / len(pairs)

    def lost(self, clock: str) -> tuple[float, float]:
        """Throughput lost by a clock ("busy_s", "cpu_s"): mean over rounds, and half of its 95 % interval."""
        each = [math.log(b[clock] / b["tokens"]) - math.log(a[clock] / a["tokens"]) for a, b in self.rounds]
        mean = statistics.fmean(each)
        if len(each) < 2:
            return 1.0 - math.exp(-mean), math.inf
        t = T95[len(each) - 2] if len(each) - 2 < len(T95) else 2.1
        return 1.0 - math.exp(-mean), t * statistics.stdev(each) / math.sqrt(len(each))

    def row(self) -> list[list[dict[str, Any]]]:
        return [[{k: v for k, v in arm.items() if k != "texts"} for arm in pair] for pair in self.rounds]

    def __str__(self) -> str:
        lines = []
        for arm, name in enumerate(("vLLM", "ours")):
            tokens, steps = self.total(arm, "tokens"), self.total(arm, "steps")
            lines.append(
                f"  {name}  {self.total(arm, 'preemptions'):.0f} preemptions, {steps:.0f} steps, "
                f"{tokens / steps:.2f} tokens a step, {tokens / self.total(arm, 'busy_s'):.0f} tokens/s, "
                f"{tokens / self.total(arm, 'cpu_s'):.0f} a CPU second"
            )
        for clock, name in (("busy_s", "wall"), ("cpu_s", "CPU")):
            mean, half = self.lost(clock)
            lines.append(f"  lost by {name} time: {mean:+.1%} +- {half:.1%} ({len(self.rounds)} rounds)")
        return "\n".join(lines)


def compare(
    python: Path, folder: Path, seed: int, rounds: int, schedulers: Sequence[str] = ("", SCHEDULER)
) -> Mapping[Workload, Turns]:
    """Rounds of both kinds by both engines, after one of each to warm up."""
    model, rng = make_model(python, folder / "engines", LAYERS), random.Random(seed)
    found = {kind: Turns() for kind in KINDS}
    with ExitStack() as stack:
        engines = [
            stack.enter_context(Engine(python, model, folder / f"engine{i}.log", name))
            for i, name in enumerate(schedulers)
        ]
        for number in range(rounds + 1):
            for kind in KINDS:
                pair = played(engines, kind, kind.draw(rng.randrange(1 << 30)), rng)
                if number:
                    found[kind].rounds.append(pair)
    return found


def played(
    engines: Sequence[Engine], kind: Workload, asked: Sequence[tuple[list[int], int]], rng: random.Random
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One round by both, in turns, who begins by lot. Who is done waits for the other."""
    for engine in engines:
        engine.begin(kind, asked)
    done: list[dict[str, Any]] = [{"over": False}, {"over": False}]
    while not all(row["over"] for row in done):
        for arm in rng.sample((0, 1), 2):
            if not done[arm]["over"]:
                done[arm] = engines[arm].turn(TURN_STEPS)
    return done[0], done[1]
