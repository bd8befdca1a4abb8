"""vLLM's CPU worker, with a log of every step, for bench/plant.py. Loaded inside vLLM."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

from slowed_worker import batch_of
from vllm.v1.worker.cpu_worker import CPUWorker

from step_log_layout import STEP, STEPS_ENV

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


def held_tokens(step: SchedulerOutput, block_size: int) -> int:
    """KV cache of the step's requests, in tokens of whole blocks."""
    cached = step.scheduled_cached_reqs
    computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    computed |= {r.req_id: r.num_computed_tokens for r in step.scheduled_new_reqs}
    totals = (computed[name] + tokens for name, tokens in step.num_scheduled_tokens.items())
    return sum(-(-total // block_size) for total in totals) * block_size


class LoggedWorker(CPUWorker):
    """Writes when each step began and ended and what it computed."""

    _steps: int | None = None

    def execute_model(self, scheduler_output: SchedulerOutput) -> object:
        """One step, and its entry."""
        if scheduler_output.total_num_scheduled_tokens == 0:
            return super().execute_model(scheduler_output)
        if self._steps is None:
            self._steps = os.open(os.environ[STEPS_ENV], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        start_s = time.monotonic()
        output = super().execute_model(scheduler_output)
        end_s = time.monotonic()
        batch = batch_of(scheduler_output, 1.0)
        seen = bool(scheduler_output.scheduled_cached_reqs.req_ids)
        held = held_tokens(scheduler_output, self.vllm_config.cache_config.block_size)
        requests = len(scheduler_output.num_scheduled_tokens)
        os.write(self._steps, struct.pack(STEP, start_s, end_s, requests, *batch, held, seen))
        return output
