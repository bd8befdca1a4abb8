"""vLLM schedulers that start a request only if it will live a while before the KV cache overflows.

    vllm serve ... --scheduler-cls kvwattd.vllm_plugin.scheduler.KvwattScheduler

Everything else is vLLM's own: order, priorities, chunking, and preemption as the backstop. Before each step
the number of requests that may run is bounded for that step to those running plus those that `gate` lets
in; any exception in between leaves the step to vLLM's default, and is counted. vLLM calls this interface
not public: versions that were not tried are refused (`versions.py`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm import __version__ as vllm_version
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from kvwattd.vllm_plugin import ageing, reading, versions
from kvwattd.vllm_plugin.gate import Gate, View
from kvwattd.vllm_plugin.inside import Sequenced
from kvwattd.vllm_plugin.report import Report
from kvwattd.vllm_plugin.told import FILE_ENV, FILE_NAME, Reader, Told
from kvwattd.vllm_plugin.wire import DEFAULT_SOCKET, INSTANCE_ENV, SOCKET_ENV, SchedulerRecord

log = logging.getLogger("vllm.kvwatt_scheduler")  # under vLLM's own logger, whose handlers it thereby uses

FAULTS_TOLD = 3
FAULTS_TOLERATED = 100  # in a row; then the plugin stands aside for good


class _Gated:
    """Mixed in before vLLM's scheduler. Own attributes begin with kvwatt_; the annotated ones are vLLM's."""

    running: Sequence[Sequenced]
    waiting: Any
    block_size: int
    kv_cache_manager: Any
    kv_cache_config: Any
    vllm_config: Any

    def __init__(self, *args: object, **kwargs: object) -> None:
        versions.check(vllm_version)
        super().__init__(*args, **kwargs)
        self.kvwatt_seats = versions.seat_name(self)
        self.kvwatt_gate = Gate(versions.fixed_horizon())
        self.kvwatt_clock: Callable[[], float] = time.monotonic
        self.kvwatt_wall: Callable[[], float] = time.time
        self.kvwatt_steps = self.kvwatt_faults = self.kvwatt_faults_in_row = 0
        self.kvwatt_held = 0
        self.kvwatt_sorted: tuple[int, int] | None = None
        self.kvwatt_aside = self._kvwatt_why_aside()
        self._kvwatt_connect()
        log.info("kvwatt scheduler: %s", self.kvwatt_aside or "holds whoever would be preempted soon")

    def schedule(self, *args: object, **kwargs: object) -> object:
        """One step of vLLM's, with at most as many seats as the gate allows."""
        seats = getattr(self, self.kvwatt_seats)
        setattr(self, self.kvwatt_seats, self._kvwatt_allowed(seats))
        try:
            step = super().schedule(*args, **kwargs)  # type: ignore[misc]  # vLLM's
        finally:
            setattr(self, self.kvwatt_seats, seats)
        self._kvwatt_after()
        return step

    def _free_request(self, request: Sequenced, *args: object, **kwargs: object) -> object:
        try:
            self.kvwatt_gate.lengths.finished(request.request_id, request.num_output_tokens)
        except Exception:
            self._kvwatt_fault()
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]  # vLLM's

    def _kvwatt_connect(self) -> None:
        socket = os.environ.get(SOCKET_ENV, DEFAULT_SOCKET)
        instance, model = os.environ.get(INSTANCE_ENV, ""), reading.served_name(self.vllm_config)
        engine = reading.engine_rank(self.vllm_config)
        path = os.environ.get(FILE_ENV, str(Path(socket or DEFAULT_SOCKET).with_name(FILE_NAME)))
        self.kvwatt_reader = Reader(Path(path), instance, model, engine)
        self.kvwatt_report = Report(socket, instance, model, engine)

    def _kvwatt_why_aside(self) -> str:
        groups = len(getattr(self.kv_cache_config, "kv_cache_groups", ()))
        if groups != 1:
            return f"stands aside: {groups} KV cache groups, one is understood"
        return ""

    def _kvwatt_allowed(self, seats: int) -> int:
        self.kvwatt_steps += 1
        self.kvwatt_held = 0
        try:
            if self.kvwatt_aside or not self.waiting or not self.running:
                return seats
            allowed = self._kvwatt_look(self.kvwatt_reader.told(self.kvwatt_clock()))
        except Exception:
            self._kvwatt_fault()
            return seats
        self.kvwatt_faults_in_row = 0
        return min(seats, max(allowed, 1))

    def _kvwatt_look(self, told: Told | None) -> int:
        """How many may run in this step."""
        if told is not None and told.order == "smallest":
            self._kvwatt_order(told)
        pool, queue = self.kv_cache_manager.block_pool, self.waiting
        view = View(
            self.running,
            queue,
            pool.num_gpu_blocks - 1,
            pool.get_num_free_blocks(),
            self.block_size,
            by_priority=not hasattr(queue, "appendleft"),
        )
        admitted = self.kvwatt_gate.admissible(view, told, self.kvwatt_wall())
        self.kvwatt_held = len(queue) - admitted
        aside = sum(len(getattr(self, name, ())) for name in versions.ASIDE_NAMES)
        streaming = getattr(self, "num_waiting_for_streaming_input", 0)
        return len(self.running) + admitted + aside + streaming

    def _kvwatt_order(self, told: Told) -> None:
        """Smallest first, where the queue is one of arrival and something changed."""
        queue, gate = self.waiting, self.kvwatt_gate
        changed = (len(queue), self.kvwatt_steps // 16)
        if changed == self.kvwatt_sorted or not hasattr(queue, "appendleft"):
            return
        self.kvwatt_sorted = changed
        wall_s = self.kvwatt_wall()
        ahead = ageing.front(queue, lambda r: gate.lengths.left(r, told), wall_s, told.age_s)
        for request in reversed(ahead):
            queue.remove_request(request)
            queue.prepend_request(request)

    def _kvwatt_after(self) -> None:
        try:
            now_s = self.kvwatt_clock()
            self.kvwatt_report.step(
                now_s, self.kvwatt_gate, self.kvwatt_steps, self.kvwatt_faults, self._kvwatt_state(now_s)
            )
        except Exception:
            self._kvwatt_fault()

    def _kvwatt_state(self, now_s: float) -> tuple[int, bool, int, str]:
        reader = self.kvwatt_reader
        return self.kvwatt_held, reader.told(now_s) is not None, reader.errors, self.kvwatt_aside

    def kvwatt_record(self) -> SchedulerRecord:
        """The totals as they stand."""
        now_s, gate = self.kvwatt_clock(), self.kvwatt_gate
        state = self._kvwatt_state(now_s)
        return self.kvwatt_report.record(now_s, gate, self.kvwatt_steps, self.kvwatt_faults, state)

    def _kvwatt_fault(self) -> None:
        self.kvwatt_faults += 1
        self.kvwatt_faults_in_row += 1
        if self.kvwatt_faults <= FAULTS_TOLD:
            log.exception("kvwatt scheduler: this step is left to vLLM's default")
        if self.kvwatt_faults_in_row >= FAULTS_TOLERATED and not self.kvwatt_aside:
            self.kvwatt_aside = f"stands aside after {FAULTS_TOLERATED} faults in a row"
            log.error("kvwatt scheduler: %s", self.kvwatt_aside)


class KvwattScheduler(_Gated, AsyncScheduler):  # type: ignore[misc]  # vLLM has no types here
    """For asynchronous scheduling, vLLM's default on GPUs."""


class KvwattSyncScheduler(_Gated, Scheduler):  # type: ignore[misc]
    """For --no-async-scheduling, and on CPUs."""
