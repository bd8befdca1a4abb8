"""vLLM schedulers that admit by the cap ladder.

    vllm serve ... --scheduler-cls kvwattd.vllm_plugin.scheduler.KvwattScheduler

Everything else is vLLM's own: order, priorities, chunking, and preemption as the backstop. Before each step
the number of requests that may run is bounded for that step to those running plus those admissible; any
exception in between leaves the step to vLLM's default, and is counted. vLLM calls this interface not
public: other versions than the tested ones are refused unless KVWATT_SCHEDULER_FORCE=1.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm import __version__ as vllm_version
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from kvwatt.scheduling.cap_ladder import Ladder
from kvwattd.vllm_plugin.admission import LearnedCap, Sequenced, admissible

log = logging.getLogger("vllm.kvwatt_scheduler")

TESTED = ("0.27", "0.31", "0.32")
FORCE_ENV = "KVWATT_SCHEDULER_FORCE"
CAP_ENV = "KVWATT_FIRST_CAP_TOKENS"  # fixes the first rung; without it, it is learned
# The bound on running requests: renamed in 0.32.
SEAT_NAMES = ("max_num_active_reqs", "max_num_running_reqs")
FAULTS_TOLD = 3
TELL_EVERY_STEPS = 4096


@dataclass
class Counts:
    """What the ladder did since the start."""

    steps: int = 0
    held_steps: int = 0  # in which somebody waited for his reservation
    faults: int = 0


class _Pool(Protocol):
    num_gpu_blocks: int


class _Manager(Protocol):
    block_pool: _Pool


class _CapLadder:
    """Mixed in before vLLM's scheduler. Own attributes begin with kvwatt_; the annotated ones are vLLM's."""

    running: Sequence[Sequenced]
    waiting: Sequence[Sequenced]
    block_size: int
    kv_cache_manager: _Manager

    def __init__(self, *args: object, **kwargs: object) -> None:
        _check_version(vllm_version)
        super().__init__(*args, **kwargs)
        fixed = os.environ.get(CAP_ENV)
        self.kvwatt_cap = LearnedCap()
        self.kvwatt_fixed = Ladder(int(fixed)) if fixed else None
        self.kvwatt_counts = Counts()
        self.kvwatt_seats = next(name for name in SEAT_NAMES if hasattr(self, name))
        log.info("kvwatt scheduler: cap ladder over %d KV tokens", self._kvwatt_capacity_tokens())

    def schedule(self, *args: object, **kwargs: object) -> object:
        """One step of vLLM's, with at most as many seats as the ladder allows."""
        seats = getattr(self, self.kvwatt_seats)
        setattr(self, self.kvwatt_seats, self._kvwatt_allowed(seats))
        try:
            return super().schedule(*args, **kwargs)  # type: ignore[misc]  # vLLM's
        finally:
            setattr(self, self.kvwatt_seats, seats)

    def _free_request(self, request: Sequenced, *args: object, **kwargs: object) -> object:
        try:
            self.kvwatt_cap.finished(request.num_output_tokens)
        except Exception:
            self._kvwatt_fault()
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]  # vLLM's

    def _kvwatt_allowed(self, seats: int) -> int:
        counts = self.kvwatt_counts
        counts.steps += 1
        if counts.steps % TELL_EVERY_STEPS == 0:
            log.info("kvwatt scheduler: %s", counts)
        try:
            if not self.waiting:
                return seats
            allowed = len(self.running) + self._kvwatt_admissible()
            counts.held_steps += allowed < min(seats, len(self.running) + len(self.waiting))
        except Exception:
            self._kvwatt_fault()
            return seats
        return min(seats, max(allowed, 1))

    def _kvwatt_admissible(self) -> int:
        ladder = self.kvwatt_fixed or self.kvwatt_cap.ladder
        capacity = self._kvwatt_capacity_tokens()
        return admissible(ladder, self.running, self.waiting, capacity, self.block_size)

    def _kvwatt_capacity_tokens(self) -> int:
        return (self.kv_cache_manager.block_pool.num_gpu_blocks - 1) * self.block_size

    def _kvwatt_fault(self) -> None:
        self.kvwatt_counts.faults += 1
        if self.kvwatt_counts.faults <= FAULTS_TOLD:
            log.exception("kvwatt scheduler: this step is left to vLLM's default")


def _check_version(version: str) -> None:
    if not version.startswith(TESTED) and os.environ.get(FORCE_ENV) != "1":
        raise RuntimeError(
            f"kvwatt's scheduler is tested with vLLM {', '.join(TESTED)}, this is {version}: start without "
            f"--scheduler-cls, or set {FORCE_ENV}=1 to try"
        )


class KvwattScheduler(_CapLadder, AsyncScheduler):  # type: ignore[misc]  # vLLM has no types here
    """For asynchronous scheduling, vLLM's default on GPUs."""


class KvwattSyncScheduler(_CapLadder, Scheduler):  # type: ignore[misc]
    """For --no-async-scheduling, and on CPUs."""
