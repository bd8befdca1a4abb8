"""The engine in real time: each step lasts what the hardware card says at the GPU's clock of the moment.

One task owns the engine. Its timeline is absolute: a step starts when the one before it ended, not when the
task got to run again, so a late wake-up makes one token late and shifts nothing. Only when the host could
not keep up for MAX_LAG_S is the lost time given up; `dropped_s` adds it up, and a run in which it is large
says more about the host than about the plant.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from copy import copy
from enum import StrEnum

from kvwatt_sim.cards import Card
from kvwatt_sim.engine import Counters, Engine, Request, StepPlan
from kvwatt_sim.gpu import step
from kvwatt_sim.server.gpus import GpuGroup
from kvwatt_sim.server.ledger import Entry, Group, Ledger
from kvwatt_sim.server.page import Gauges, MetricsPage, PageShape
from kvwatt_sim.server.protocol import Job
from kvwatt_sim.server.ticket import Ticket

LONG_STEP_S = 0.05  # a longer step looks at the clock again on the way
SLICE_S = 0.02
MAX_LAG_S = 0.25


class PauseMode(StrEnum):
    """What a pause does with requests in flight."""

    ABORT = "abort"
    WAIT = "wait"
    KEEP = "keep"


class EnginePlant:
    """Queue, batch and GPUs of one server. All methods run on the event loop's thread."""

    def __init__(
        self, engine: Engine, card: Card, gpus: GpuGroup, page_shape: PageShape, time_scale: float = 1.0
    ) -> None:
        self.page = MetricsPage(page_shape)
        self.asleep = False
        self.paused = False
        self.dropped_s = 0.0
        self._engine = engine
        self._card = card
        self._gpus = gpus
        self._page_shape = page_shape
        self._time_scale = time_scale
        self._ledger = Ledger()
        self._inbox: list[Request] = []
        self._draining = False
        self._sleep_level = 0
        self._changed = asyncio.Event()
        self._emptied = asyncio.Event()
        self._seen = Counters()

    @property
    def in_flight(self) -> int:
        """API requests that have not been answered to the end."""
        return self._ledger.api_requests

    @property
    def steps(self) -> int:
        """Engine steps so far."""
        return self._engine.counters.steps

    def submit(self, api_id: str, jobs: Sequence[Job], n: int, stream: bool, arrival_s: float) -> Ticket:
        """Queue one engine request per job, `n` in a row per prompt. The ticket gets their tokens."""
        ticket = Ticket(len(jobs), stream)
        group = Group(n, n)
        for index, job in enumerate(jobs):
            if index % n == 0:
                group = Group(n, n)
            request_id = f"{api_id}-{index}"
            self._ledger.open(request_id, Entry(api_id, index, ticket, group, arrival_s))
            self._inbox.append(
                Request(request_id, arrival_s, job.prompt_tokens, job.output_tokens, job.max_tokens)
            )
        self._changed.set()
        return ticket

    def abort(self, api_id: str) -> None:
        """End what is left of one API request and free its KV blocks."""
        self._abort(self._ledger.ids_of(api_id), by_client=True)

    async def pause(self, mode: PauseMode) -> None:
        """Run no more steps. With WAIT, what is in flight ends first; newer requests wait."""
        if mode is PauseMode.ABORT:
            self._abort(self._ledger.ids(), by_client=False)
        self._take_in()
        if mode is PauseMode.WAIT and not self.paused:
            self._draining = True
            self._emptied.clear()
            self._changed.set()
            await self._emptied.wait()
            if not self._draining:
                return  # resumed meanwhile
            self._draining = False
            self._take_in()  # what came meanwhile waits, and shows
        self.paused = True

    def resume(self) -> None:
        """Run steps again."""
        self.paused = self._draining = False
        self._emptied.set()
        self._changed.set()

    async def sleep(self, level: int, mode: PauseMode) -> None:
        """Pause, and with level 1 or 2 give up GPU memory; requests hang until `wake_up`."""
        await self.pause(mode)
        self.asleep, self._sleep_level = True, level
        self.page.sleep_state(True, level)

    def wake_up(self) -> None:
        """End a sleep; also ends a pause."""
        self.asleep, self._sleep_level = False, 0
        self.page.sleep_state(False, 0)
        self.resume()

    def reset_page(self) -> None:
        """All series start again, as after a restart of the engine; its requests go on."""
        self.page = MetricsPage(self._page_shape)
        self.page.sleep_state(self.asleep, self._sleep_level)
        self._show_gauges()

    async def run(self) -> None:
        """Serve until cancelled; the GPUs are idle afterwards."""
        try:
            start_s = time.monotonic()
            while True:
                self._take_in()
                plan = None if self.paused else self._engine.schedule(start_s)
                if plan is None:
                    self._gpus.publish(0.0, 0.0)
                    self._emptied.set()
                    await self._changed.wait()
                    self._changed.clear()
                    start_s = time.monotonic()
                    continue
                self._show_gauges()
                start_s = self._without_lag(await self._run_step(plan, start_s))
        finally:
            self._gpus.publish(0.0, 0.0)

    async def _run_step(self, plan: StepPlan, start_s: float) -> float:
        """Returns the end of the step on the plant's timeline."""
        now_s, left = start_s, 1.0
        while left > 0.0:
            took = step(
                self._card,
                self._gpus.clock_mhz(),
                plan.decode_batch,
                plan.kv_tokens,
                plan.prefill_tokens,
                plan.prefill_context_tokens,
            )
            self._gpus.publish(took.compute, took.memory)
            whole_s = took.time_s / self._time_scale
            part = left if whole_s * left <= LONG_STEP_S else SLICE_S / whole_s
            now_s += whole_s * part
            left -= part
            # sleep(0) when late, so that HTTP is served even while catching up
            await asyncio.sleep(max(now_s - time.monotonic(), 0.0))
        events = self._engine.complete(plan, now_s)
        self._ledger.take(events, self.page)
        self.page.progress(self._engine.counters, self._seen)
        self._count_work(plan)
        self._seen = copy(self._engine.counters)
        self._show_gauges()
        return now_s

    def _count_work(self, plan: StepPlan) -> None:
        """Two operations per weight and token in bfloat16, one read of the weights, each KV entry once."""
        card, tokens = self._card, plan.scheduled_tokens
        flops = card.weights_bytes * tokens
        read_bytes = card.weights_bytes + plan.kv_tokens * card.kv_bytes_per_token
        written_bytes = tokens * card.kv_bytes_per_token
        self.page.work(flops / card.tp, read_bytes / card.tp, written_bytes / card.tp)

    def _without_lag(self, end_s: float) -> float:
        now_s = time.monotonic()
        if now_s - end_s <= MAX_LAG_S:
            return end_s
        self.dropped_s += now_s - end_s
        return now_s

    def _take_in(self) -> None:
        """Move new requests to the engine's queue, unless only older ones are to end."""
        if not self._inbox or self._draining:
            return
        for request in self._inbox:
            self._engine.add(request)
        self._inbox.clear()
        self._show_gauges()

    def _abort(self, request_ids: list[str], by_client: bool) -> None:
        self._take_in()
        now_s = time.monotonic()
        held = {request.request_id: request for request in self._inbox}
        for request_id in request_ids:
            if request_id in held:  # not in the engine while draining
                self._inbox.remove(held[request_id])
                self._engine.add(held[request_id])
            record = self._engine.abort(request_id, now_s)
            if record is not None:
                self._ledger.aborted(request_id, record, self.page, by_client)
        self._show_gauges()

    def _show_gauges(self) -> None:
        engine = self._engine
        self.page.scheduler(Gauges(engine.running, engine.waiting + len(self._inbox), engine.kv_usage))
