"""Instances: random ones, the paper's, and bad ones found by search. Randomness is an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import numpy as np

from kvwatt.scheduling.jobs import Job

# LMSYS-Chat-1M has 214.5 tokens per answer on average (Zheng et al., ICLR 2024, table 1). The spread is
# not published there: log-normal with a log-deviation of one is assumed.
LMSYS_MEAN_TOKENS = 214.5
LOG_DEVIATION = 1.0


def lmsys_like(
    rng: np.random.Generator, n: int, prompt_tokens: int = 79, longest: int = 2048, rounded: bool = False
) -> list[Job]:
    """`rounded`: outputs rounded up to powers of two, as in the paper's experiment."""
    mu = log(LMSYS_MEAN_TOKENS) - LOG_DEVIATION**2 / 2
    outputs = np.clip(np.ceil(rng.lognormal(mu, LOG_DEVIATION, n)), 1, longest).astype(int)
    if rounded:
        outputs = 2 ** np.ceil(np.log2(outputs)).astype(int)
    return [Job(prompt_tokens, int(o)) for o in outputs]


def two_point(
    long_jobs: int, long_tokens: int, short_jobs: int, short_tokens: int, prompt_tokens: int
) -> list[Job]:
    """A few long jobs first in line before many short ones (paper: 6 of 160, 194 of 1, s = 96, M = 256)."""
    return [Job(prompt_tokens, long_tokens)] * long_jobs + [Job(prompt_tokens, short_tokens)] * short_jobs


def random_instance(
    rng: np.random.Generator, memory_tokens: int, largest: int, individual_prompts: bool
) -> list[Job]:
    """Lengths from families that differ in tail: uniform, log-uniform, two-point, equal."""
    n = int(rng.integers(1, largest + 1))
    prompt = int(rng.integers(0, max(memory_tokens // 2, 1)))
    room = memory_tokens - prompt
    family = int(rng.integers(4))
    if family == 0:
        outputs = rng.integers(1, room + 1, n)
    elif family == 1:
        outputs = np.exp(rng.uniform(0.0, log(room + 1), n)).astype(int)
    elif family == 2:
        outputs = rng.choice(rng.integers(1, room + 1, 2), n, p=[0.1, 0.9])
    else:
        outputs = np.full(n, rng.integers(1, room + 1))
    prompts = rng.integers(0, prompt + 1, n) if individual_prompts else np.full(n, prompt)
    return [Job(int(s), int(np.clip(o, 1, room))) for s, o in zip(prompts, outputs, strict=True)]


def search_bad(
    rng: np.random.Generator,
    jobs: Sequence[Job],
    memory_tokens: int,
    ratio: Callable[[Sequence[Job]], float],
    steps: int,
) -> tuple[list[Job], float]:
    """Climb to a worse ratio by changing one output, copying, swapping or dropping a job at a time."""
    best, worst = list(jobs), ratio(jobs)
    for _ in range(steps):
        trial = _mutated(rng, best, memory_tokens)
        found = ratio(trial)
        if found >= worst:
            best, worst = trial, found
    return best, worst


def _mutated(rng: np.random.Generator, jobs: Sequence[Job], memory_tokens: int) -> list[Job]:
    out = list(jobs)
    i, j = (int(k) for k in rng.integers(len(out), size=2))
    kind = int(rng.integers(4))
    if kind == 0:
        factor = float(np.exp(rng.normal(0.0, 1.0)))
        room = memory_tokens - out[i].prompt_tokens
        out[i] = Job(out[i].prompt_tokens, int(np.clip(round(out[i].output_tokens * factor), 1, room)))
    elif kind == 1:
        out.insert(j, out[i])
    elif kind == 2:
        out[i], out[j] = out[j], out[i]
    elif len(out) > 1:
        del out[i]
    return out
