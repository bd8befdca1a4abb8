"""Telemetry of a busy engine and its GPU without an engine: pages and readings by the laws of averages.

For hours of a daemon's life in seconds. Requests come at random and finish; each brings one step with its
prompt, and the batch follows Little's law at the step times of the model that the daemon decides with, so
that nothing drifts. Counters only rise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvwatt.compiled import CompiledModel
from kvwatt.state import EngineShape, EngineSnapshot, GpuSample, Histogram

SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    40.0,
    math.inf,
)
TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, math.inf)
DAY_S = 86_400.0
PROMPT_MEAN, OUTPUT_MEAN = 556.0, 190.0  # tokens, of the lognormals below
MAX_PREFILL_SHARE = 0.9


@dataclass
class _Counts:
    """A growing histogram."""

    bounds: tuple[float, ...]
    total: float = 0.0
    counts: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.bounds))

    def add(self, values: Sequence[float] | npt.NDArray[np.float64], weight: float = 1.0) -> None:
        np.add.at(self.counts, np.searchsorted(self.bounds, values), weight)
        self.total += float(np.sum(values)) * weight

    def histogram(self) -> Histogram:
        cumulative = tuple(np.cumsum(self.counts).tolist())
        return Histogram(self.bounds, cumulative, self.total, cumulative[-1])


class EngineFeed:
    """One engine. The rate swings by half around its mean over a day."""

    def __init__(
        self, model: CompiledModel, shape: EngineShape, rate_per_s: float, seed: int, start_s: float = 0.0
    ) -> None:
        self._model, self._shape, self._rate_per_s = model, shape, rate_per_s
        self._draw = np.random.default_rng(seed)
        self._last_s = start_s
        self._itl_s, self._batch, self._prefill_share = 0.03, 1.0, 0.0
        self._kv_tokens = 0.0
        self._sums = dict.fromkeys(("prompts", "generated", "finished"), 0.0)
        self._iterations, self._prompts, self._outputs = _Counts(TOKENS), _Counts(TOKENS), _Counts(TOKENS)
        self._ttft, self._tbt, self._itl, self._e2e = (_Counts(SECONDS) for _ in range(4))
        self._started = 0.0  # requests with a first token: those that have finished, and the batch
        self._energy_j = 0.0
        self._read_s = start_s

    def page(self, now_s: float, clock_mhz: int | None) -> EngineSnapshot:
        """The page of this moment, having run at this clock (None: the highest) since the one before."""
        dt_s, self._last_s = now_s - self._last_s, now_s
        rate = self._rate_per_s * (1.0 + 0.5 * math.sin(2.0 * math.pi * now_s / DAY_S))
        count = int(self._draw.poisson(rate * dt_s))
        prompts = np.clip(self._draw.lognormal(6.0, 0.8, count), 1, 8000).round()
        outputs = np.clip(self._draw.lognormal(5.0, 0.7, count), 1, 2000).round()
        self._settle(rate, clock_mhz)
        self._count(dt_s, prompts, outputs)
        return EngineSnapshot(
            observed_s=now_s,
            model_name="sim",
            engine="0",
            running=round(self._started - self._sums["finished"]),
            waiting=0,
            waiting_for_capacity=0,
            kv_usage=min(self._kv_tokens / self._shape.kv_capacity_tokens, 1.0),
            block_size=self._shape.block_size,
            num_blocks=self._shape.num_blocks,
            asleep=False,
            prompt_tokens_total=self._sums["prompts"],
            prompt_tokens_cached_total=0.0,
            generation_tokens_total=self._sums["generated"],
            preemptions_total=0.0,
            requests_finished_total=self._sums["finished"],
            iterations=self._iterations.histogram(),
            prompt_lengths=self._prompts.histogram(),
            generation_lengths=self._outputs.histogram(),
            ttft_s=self._ttft.histogram(),
            tbt_s=self._tbt.histogram(),
            itl_s=self._itl.histogram(),
            e2e_s=self._e2e.histogram(),
        )

    def sample(self, now_s: float, uuid: str, clock_mhz: int | None) -> GpuSample:
        """A reading of its GPU."""
        clocks = self._model.clocks_mhz
        index = len(clocks) - 1 if clock_mhz is None else int(np.searchsorted(clocks, clock_mhz))
        index = min(index, len(clocks) - 1)
        share = self._prefill_share
        power_w = float(np.dot((1.0 - share, share), self._model.power_w(*self._load())[:, index]))
        self._energy_j += power_w * (now_s - self._read_s)
        self._read_s = now_s
        return GpuSample(now_s, uuid, clocks[index], power_w, self._energy_j, 55.0, 0.9, 0)

    def _load(self) -> tuple[npt.NDArray[np.float64], ...]:
        """A step without and one with a prompt."""
        return np.full(2, self._batch), np.full(2, self._kv_tokens), np.array([0.0, PROMPT_MEAN])

    def _settle(self, rate: float, clock_mhz: int | None) -> None:
        """Little's law, one step towards its fixed point a page."""
        clocks = self._model.clocks_mhz
        index = len(clocks) - 1 if clock_mhz is None else int(np.searchsorted(clocks, clock_mhz))
        decode_s, prompt_s = self._model.step_time_s(*self._load())[:, min(index, len(clocks) - 1)]
        self._prefill_share = min(rate * float(prompt_s), MAX_PREFILL_SHARE)
        self._itl_s = 1.0 / (rate + (1.0 - self._prefill_share) / float(decode_s))
        self._batch = min(rate * OUTPUT_MEAN * self._itl_s, float(self._shape.max_num_seqs))
        self._kv_tokens = min(self._batch * 600.0, 0.9 * self._shape.kv_capacity_tokens)

    def _count(self, dt_s: float, prompts: npt.NDArray[np.float64], outputs: npt.NDArray[np.float64]) -> None:
        steps = math.floor(dt_s / self._itl_s)
        self._iterations.add([max(self._batch, 1.0)], steps)
        self._itl.add([self._itl_s], round(self._batch * steps))
        self._sums["generated"] += round(self._batch * steps)
        self._sums["prompts"] += float(prompts.sum())
        self._sums["finished"] += len(prompts)
        self._prompts.add(prompts)
        self._outputs.add(outputs)
        noise = self._draw.lognormal(0.0, 0.1, len(prompts))
        before, self._started = self._started, max(self._started, self._sums["finished"] + round(self._batch))
        self._ttft.add(
            [0.05 + 1e-4 * float(np.mean(prompts)) if len(prompts) else 0.1], self._started - before
        )
        self._tbt.add(self._itl_s * noise)
        self._e2e.add(0.1 + outputs * self._itl_s * noise)
