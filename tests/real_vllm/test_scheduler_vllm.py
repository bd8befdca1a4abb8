"""kvwatt's scheduler as the class that vLLM runs, driven without a model: exact counts, no server's start.

Beside a running server it is in test_tap.py. Other versions: KVWATT_VLLM_VENV=VENV pytest -m vllm FILE.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
from typing import Any

import pytest
from vllm_server import HERE, REPOSITORY, make_model, vllm_python

pytestmark = pytest.mark.vllm

ASYNC = "kvwattd.vllm_plugin.scheduler.KvwattScheduler"
OURS = "kvwattd.vllm_plugin.scheduler.KvwattSyncScheduler"
COST = {"base_s": 4e-3, "decode_s": 1e-4, "prompt_token_s": 3e-5}
COUNT = 120
Counts = dict[str, Any]


def lognormal(seed: int, rate: float, hinted: bool = False, priorities: int = 1) -> list[tuple[Any, ...]]:
    """(arrival, prompt, output, max_tokens, priority, hint) each."""
    rng, made, now_s = random.Random(seed), list[tuple[Any, ...]](), 0.0
    for number in range(COUNT):
        output = max(1, min(1024, int(rng.lognormvariate(math.log(200), 0.9))))
        prompt = max(8, min(512, int(rng.lognormvariate(math.log(90), 0.8))))
        now_s += rng.expovariate(rate)
        made.append((now_s, prompt, output, 1024, number % priorities, output if hinted else None))
    return made


PLAN: dict[str, dict[str, Any]] = {
    "vllm": {"scheduler": None, "requests": lognormal(101, 9.0)},
    "ours": {"scheduler": OURS, "requests": lognormal(101, 9.0)},
    "ahead": {"scheduler": ASYNC, "requests": lognormal(101, 9.0), "ahead": 1},
    "faulty": {"scheduler": OURS, "requests": lognormal(101, 9.0), "fault_every": 3},
    "broken": {"scheduler": OURS, "requests": lognormal(101, 9.0), "fault_every": 1},
    "priorities": {"scheduler": OURS, "requests": lognormal(102, 9.0, priorities=2), "policy": "priority"},
    "hints": {"scheduler": OURS, "requests": lognormal(102, 9.0, hinted=True), "told": {"model": "m"}},
    "smallest": {
        "scheduler": OURS,
        "requests": lognormal(102, 9.0, hinted=True),
        "told": {"model": "m", "order": "smallest", "age_s": 5.0},
    },
    "budget": {"scheduler": OURS, "requests": lognormal(102, 9.0), "told": {"model": "m", "max_seqs": 3}},
}


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counts]:
    """All runs of the plan, in one process of vLLM's interpreter."""
    python, folder = vllm_python(), tmp_path_factory.mktemp("bare")
    model = make_model(python, folder / "tiny")
    paths = os.pathsep.join(str(REPOSITORY / part) for part in ("predictor", "daemon"))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), str(HERE / "bare_scheduler.py"), str(model)],
        input=json.dumps([{**run, **COST} for run in PLAN.values()]),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(PLAN, json.loads(done.stdout.split("\n@")[-1]), strict=True))


def rate(counts: Counts) -> float:
    return float(counts["tokens"] / counts["time_s"])


def test_everybody_is_served_whatever_is_told_or_fails(counts: dict[str, Counts]) -> None:
    """All requests end, with all their tokens."""
    for name, run in PLAN.items():
        assert len(counts[name]["finished"]) == COUNT, name
        assert counts[name]["tokens"] == sum(request[2] for request in run["requests"]), name


def test_half_of_the_preemptions_are_avoided_at_the_same_throughput(counts: dict[str, Counts]) -> None:
    """By the time of the plan, in which recomputed prompts cost what they cost."""
    vllm, ours = counts["vllm"], counts["ours"]
    assert vllm["preemptions"] > 50
    assert ours["preemptions"] <= 0.5 * vllm["preemptions"]
    assert rate(ours) >= 0.99 * rate(vllm)
    told = ours["told"]
    assert told["faults_total"] == 0
    assert told["held_total"] > 0
    assert 0 < told["avoided_total"] <= vllm["preemptions"]


def test_asynchronous_scheduling_gains_as_much(counts: dict[str, Counts]) -> None:
    """A step ahead of what is known of the tokens, as on GPUs."""
    vllm, ahead = counts["vllm"], counts["ahead"]
    assert ahead["preemptions"] <= 0.5 * vllm["preemptions"]
    assert rate(ahead) >= 0.98 * rate(vllm)  # each request idles for a step at its end
    assert ahead["told"]["faults_total"] == 0


def test_an_exception_leaves_the_step_to_vllm_and_is_counted(counts: dict[str, Counts]) -> None:
    """Every third look fails: it still helps; every one fails: it is vLLM's scheduler, step by step."""
    faulty, broken, vllm = counts["faulty"]["told"], counts["broken"]["told"], counts["vllm"]
    assert faulty["faults_total"] > 20
    assert not faulty["aside"]
    assert broken["faults_total"] >= 100
    assert "100 faults in a row" in broken["aside"]
    for name in ("preemptions", "steps", "order"):
        assert counts["broken"][name] == vllm[name]


def test_priorities_are_respected(counts: dict[str, Counts]) -> None:
    """The urgent half is served much earlier, as by vLLM's own order."""
    latencies = counts["priorities"]["finished"]
    urgent = [s for number, s in latencies.items() if int(number) % 2 == 0]
    patient = [s for number, s in latencies.items() if int(number) % 2]
    assert sum(urgent) < 0.7 * sum(patient)


def test_smallest_first_shortens_the_mean(counts: dict[str, Counts]) -> None:
    """With hints; and ageing bounds what the longest pays for it."""
    arrival, smallest = (sorted(counts[name]["finished"].values()) for name in ("hints", "smallest"))
    assert sum(smallest) < 0.9 * sum(arrival)
    assert smallest[-1] < 2.5 * arrival[-1]


def test_the_budget_bounds_the_batch(counts: dict[str, Counts]) -> None:
    """Three sequences at most."""
    assert counts["budget"]["batch_steps"] <= 3 * counts["budget"]["steps"]
    assert counts["budget"]["told"]["held_steps"]["budget"] > 0
