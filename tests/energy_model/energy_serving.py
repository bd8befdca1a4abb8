"""An engine in virtual time with the tap's record of every step, pages twice a second and exact energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

from kvwatt.state import EngineSnapshot, Histogram
from kvwatt.traffic import interval
from kvwatt_sim import gpu
from kvwatt_sim.cards import Card, load
from kvwatt_sim.engine import Engine, Request
from kvwatt_sim.engine_tap import EngineTap
from kvwatt_sim.replay.scenario import shape_for
from kvwattd.energy_account import EnergyAccount
from kvwattd.energy_followed import Told
from kvwattd.tap_progress import TapProgress
from kvwattd.vllm_plugin.wire import Finished, Record

CARD = load("l20")
SHAPE = shape_for(CARD, "paper")
POLL_S = 0.5
CLOCK = 1800


class Truth:
    """The plant's own laws as the step model."""

    def __init__(self, card: Card = CARD) -> None:
        self._card = card

    def _each(self, *columns: np.ndarray) -> list[gpu.Step]:
        return [gpu.step(self._card, *map(float, row)) for row in zip(*columns, strict=True)]

    def step_time_s(self, *columns: np.ndarray) -> np.ndarray:
        return np.array([step.time_s for step in self._each(*columns)])

    def power_w(self, *columns: np.ndarray) -> np.ndarray:
        rows = zip(columns[0], self._each(*columns), strict=True)
        return np.array([gpu.power_w(self._card, float(f), s.compute, s.memory) for f, s in rows])

    def idle_power_w(self, clock_mhz: np.ndarray) -> np.ndarray:
        return np.array([gpu.power_w(self._card, float(f), 0.0, 0.0) for f in clock_mhz])


def _histogram(count: float) -> Histogram:
    return Histogram((inf,), (count,), 0.0, count)


@dataclass
class Serving:
    """Call `run`; `energy_j` is what a perfect counter says."""

    requests: Sequence[Request]
    tapped: bool = True
    account: EnergyAccount = field(default_factory=lambda: EnergyAccount(SHAPE.max_num_batched_tokens))
    energy_j: float = 0.0
    finished: int = 0
    on_page: Callable[[Serving], None] = lambda _: None
    on_record: Callable[[Record, float], None] = lambda *_: None

    def __post_init__(self) -> None:
        self.engine, self.progress = Engine(SHAPE), TapProgress()
        known = {request.request_id: request for request in self.requests}
        self.tap = EngineTap(self.engine, known.__getitem__, "tiny", every_token=True)
        self.now_s, self.page_s = 0.0, 0.0
        self.truth = Truth()
        self.page: EngineSnapshot | None = None
        self.ended: list[Finished] = []
        self.coming = list(self.requests)

    def run(self, until_s: float) -> None:
        """Serve and idle until then."""
        coming = self.coming
        while self.now_s < until_s:
            while coming and coming[0].arrival_s <= self.now_s:
                self.engine.add(coming.pop(0))
            plan = self.engine.schedule(self.now_s)
            if plan is None:
                next_s = min(self.now_s + 0.05, coming[0].arrival_s if coming else inf)
                self._draw(next_s, float(Truth().idle_power_w(np.array([CLOCK]))[0]))
                continue
            step = gpu.step(CARD, CLOCK, plan.decode_batch, plan.kv_tokens, plan.prefill_tokens)
            self._draw(self.now_s + step.time_s, gpu.power_w(CARD, CLOCK, step.compute, step.memory))
            record = self.tap.record(plan, self.engine.complete(plan, self.now_s), self.now_s)
            self.progress.on_record(record, self.now_s)
            self.on_record(record, self.now_s)
            self.ended += record.finished
            self.finished += len(record.finished)

    def _draw(self, until_s: float, watts: float) -> None:
        """Energy until then, with the pages that fall due."""
        while self.page_s <= until_s:
            self.energy_j += max(self.page_s - self.now_s, 0.0) * watts
            self.now_s = max(self.page_s, self.now_s)
            self._tell()
            self.page_s += POLL_S
        self.energy_j += (until_s - self.now_s) * watts
        self.now_s = until_s

    def _tell(self) -> None:
        old, self.page = self.page, self._page()
        done = interval(old, self.page) if old is not None else None
        ended, self.ended = self.ended, []
        told = Told(self.progress.roll, ended) if self.tapped else None
        self.account.on_page(self.page, done, {"GPU": self.energy_j}, float(CLOCK), self.truth, told)
        self.on_page(self)

    def _page(self) -> EngineSnapshot:
        counters, none = self.engine.counters, _histogram(0.0)
        return EngineSnapshot(
            observed_s=self.now_s,
            model_name="tiny",
            engine="0",
            running=self.engine.running,
            waiting=self.engine.waiting,
            waiting_for_capacity=0,
            kv_usage=self.engine.kv_usage,
            block_size=SHAPE.block_size,
            num_blocks=SHAPE.num_blocks,
            asleep=False,
            prompt_tokens_total=counters.prompt_tokens,
            prompt_tokens_cached_total=counters.prompt_tokens_cached,
            generation_tokens_total=counters.generation_tokens,
            preemptions_total=counters.preemptions,
            requests_finished_total=self.finished,
            iterations=_histogram(counters.steps),
            prompt_lengths=none,
            generation_lengths=none,
            ttft_s=none,
            tbt_s=none,
            itl_s=none,
            e2e_s=none,
        )


def conversation(rate_per_s: float, until_s: float, seed: int) -> list[Request]:
    """Requests of the built-in workload."""
    from kvwatt_sim.workload import generate

    trace = generate(rate_per_s, until_s, seed)
    return [Request(f"r{i}", r.arrival_s, r.prompt_tokens, r.output_tokens) for i, r in enumerate(trace)]
