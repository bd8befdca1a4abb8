"""Real vLLM on the CPU under given load, with every step on record. Part of bench/plant.py."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from kvwatt.state import EngineShape
from kvwatt_sim.fit.measured import MeasuredStep
from kvwatt_sim.fit.served import Delays, Observed
from kvwatt_sim.loadgen import LoadGenerator, LoadOptions, RequestRecord
from kvwatt_sim.traces import TraceRequest
from kvwattd.telemetry.vllm_metrics import parse
from step_log_layout import STEP, STEPS_ENV

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "tests" / "real_vllm"))

from plant_model import free_port  # noqa: E402 (after the path is set)
from vllm_server import (  # noqa: E402
    BLOCK_SIZE,
    MAX_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    VllmServer,
    make_model,
    vllm_python,
)

Floats = npt.NDArray[np.float64]
LAYERS = 24  # steps of ten milliseconds and more: the engine, not the HTTP server, is what takes time
ALONE_GAP_S = 1.0  # between requests that meet an empty server


class VllmUnavailableError(Exception):
    """The message says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What clients saw, and the engine's steps: rows of `step_log_layout.STEP`, seconds from the start."""

    requests: Sequence[TraceRequest]
    records: Sequence[RequestRecord]
    log: Floats

    @property
    def step_s(self) -> Floats:
        """From each step's start to the next one's, or to its own end and what the engine does behind it."""
        start_s, end_s, follows = self.log[:, 0], self.log[:, 1], self.log[:, 8] > 0
        until_next = np.append(np.diff(start_s), np.inf)
        linked = np.append(follows[1:], False)
        behind = float(np.median((until_next - (end_s - start_s))[linked])) if linked.any() else 0.0
        return np.where(linked, until_next, end_s - start_s + behind)

    def measured(self) -> list[MeasuredStep]:
        """The steps for a fit; the token that a decode computes counts as KV, as in the simulated engine."""
        return [
            MeasuredStep(int(row[3]), int(row[4] + row[3]), int(row[5]), float(row[6]), float(took_s))
            for row, took_s in zip(self.log, self.step_s, strict=True)
        ]

    def observed(self) -> Observed:
        """As `simulate` gives it. Raises RuntimeError where a request failed."""
        failed = [record.error for record in self.records if record.error]
        if failed:
            raise RuntimeError(f"{len(failed)} requests failed, the first with: {failed[0]}")
        end_s = self.log[:, 0] + self.step_s
        steps = np.stack([self.log[:, 0], end_s, self.log[:, 2], self.log[:, 7] / BLOCK_SIZE], axis=1)
        first = np.array([r.first_token_s or np.nan for r in self.records])
        last = np.array([r.last_token_s or np.nan for r in self.records])
        due = np.array([r.due_s for r in self.records])
        count = np.array([r.tokens for r in self.records], dtype=np.float64)
        tbt = np.where(count > 1, (last - first) / np.maximum(count - 1, 1), np.nan)
        gaps = np.array([gap for r in self.records for gap in r.gaps_s])
        return Observed(first - due, last - due, tbt, gaps, steps)


@dataclass(frozen=True)
class RealEngine:
    """A running server; `shape` as it told on its page."""

    url: str
    steps: Path
    shape: EngineShape

    def run(self, requests: Sequence[TraceRequest], seed: int) -> Run:
        """Serve `requests` at their times, lengths exact."""
        skip = self.steps.stat().st_size if self.steps.exists() else 0
        options = LoadOptions(model="tiny", exact_lengths=True, seed=seed)
        generator = LoadGenerator(self.url, requests, options)
        start_s = time.monotonic() + 0.2
        asyncio.run(generator.run(start_s))
        rows = np.array(list(struct.iter_unpack(STEP, self.steps.read_bytes()[skip:])))
        rows[:, :2] -= start_s
        return Run(tuple(requests), generator.records, rows)

    def delays(self, prompt_tokens: int, count: int, seed: int) -> Delays:
        """Medians over requests that meet an empty server, each with one prompt step."""
        alone = [TraceRequest(ALONE_GAP_S * i, prompt_tokens, 2) for i in range(count)]
        run = self.run(alone, seed)
        origin_s = run.records[0].due_s
        prompts = run.log[:, 5] > 0
        if prompts.sum() != count:
            raise RuntimeError(f"{prompts.sum()} prompt steps for {count} requests: the server was not empty")
        start_s = run.log[prompts, 0]
        end_s = start_s + run.step_s[prompts]
        sent = np.array([r.sent_s or np.nan for r in run.records]) - origin_s
        first = np.array([r.first_token_s or np.nan for r in run.records]) - origin_s
        return Delays(float(np.median(start_s - sent)), float(np.median(first - end_s)))


@contextmanager
def real_engine(folder: Path) -> Iterator[RealEngine]:
    """vLLM with the tests' random-weight model, pinned to one core; the other is left to the clients.

    Raises VllmUnavailableError where it cannot be had or does not start.
    """
    steps = folder / "steps"
    try:
        server = _started(folder, steps)
    except (pytest.skip.Exception, OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise VllmUnavailableError(f"real vLLM on the CPU is not available: {error}") from error
    try:
        page = httpx.get(f"{server.url}/metrics", timeout=30.0, trust_env=False).content
        told = parse(page, 0.0)
        shape = EngineShape(told.block_size, told.num_blocks, MAX_NUM_SEQS, MAX_BATCHED_TOKENS)
        yield RealEngine(server.url, steps, shape)
    finally:
        server.stop()


def _started(folder: Path, steps: Path) -> VllmServer:
    python = vllm_python()
    server = VllmServer(
        python,
        make_model(python, folder / "tiny", LAYERS),
        folder / "unused.state",
        free_port(),
        folder / "vllm.log",
        environment={STEPS_ENV: str(steps), "VLLM_CPU_OMP_THREADS_BIND": "0"},
        paths=[BENCH],
        worker="step_log.LoggedWorker",
    )
    server.start()
    return server
