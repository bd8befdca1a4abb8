"""Real HTTP load on vLLM in phases, and the clock in force meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil
from statistics import median
from types import TracebackType
from typing import Self

from vllm_server import REPOSITORY, TOKEN_SCALE

from kvwatt_sim.loadgen import LoadGenerator, LoadOptions, RequestRecord
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.traces import TraceRequest, at_rate, load_azure, window
from kvwatt_sim.workload import generate

AZURE = REPOSITORY.parent / "shared" / "data" / "traces" / "AzureLLMInferenceTrace_conv_2023.csv"


@dataclass(frozen=True)
class Phase:
    """Conversations at one mean rate."""

    rate_per_s: float
    duration_s: float


def conversations(phase: Phase, seed: int) -> tuple[TraceRequest, ...]:
    """The Azure trace's requests where it is at hand, else the built-in ones drawn like them."""
    if not AZURE.is_file():
        return generate(phase.rate_per_s, phase.duration_s, seed)
    return window(at_rate(load_azure(AZURE), phase.rate_per_s, seed), phase.duration_s, 60.0 * seed)


def requests(phases: Sequence[Phase], seed: int) -> tuple[TraceRequest, ...]:
    """All phases one after the other, tokens scaled to fit the context window."""
    starts_s = accumulate((phase.duration_s for phase in phases), initial=0.0)
    return tuple(
        TraceRequest(
            start_s + item.arrival_s,
            ceil(item.prompt_tokens / TOKEN_SCALE),
            ceil(item.output_tokens / TOKEN_SCALE),
        )
        for index, (phase, start_s) in enumerate(zip(phases, starts_s, strict=False))
        for item in conversations(phase, seed + index)
    )


def serve(url: str, load: Sequence[TraceRequest], seed: int) -> list[RequestRecord]:
    """Stream every request at its time, wait for all, and return what the clients saw."""
    options = LoadOptions(model="tiny", exact_lengths=True, seed=seed)
    generator = LoadGenerator(url, load, options)
    asyncio.run(generator.run(time.monotonic() + 0.1))
    return generator.records


class Background:
    """The same load from a thread, for as long as the block lasts."""

    def __init__(self, url: str, load: Sequence[TraceRequest], seed: int) -> None:
        options = LoadOptions(model="tiny", exact_lengths=True, seed=seed)
        self._generator = LoadGenerator(url, load, options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._task = self._loop.create_task(self._generator.run(time.monotonic()))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):  # the block has ended
            self._loop.run_until_complete(self._task)


@dataclass
class ClockLog:
    """The clock of GPU 0 five times a second: the lock's, or the boost clock where nothing is locked."""

    gpus: SimGpus
    samples: list[tuple[float, int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        boost_mhz = self.gpus.spec(0).boost_mhz
        while not self._stop.wait(0.2):
            locked = self.gpus.lock_mhz(0)
            self.samples.append((time.monotonic(), locked[1] if locked else boost_mhz))

    def median_mhz(self, start_s: float, end_s: float) -> float:
        """Median clock in a span of monotonic time."""
        return median(clock for t, clock in self.samples if start_s <= t < end_s)
