"""A vLLM worker for tests: each engine step takes what a hardware card says at the simulated clock.

Loaded by a real vLLM with `--worker-cls slowed_worker.SlowedWorker`. The real step is computed on the CPU
first; then the worker waits until the card's step time has passed. What the GPU would be doing meanwhile
is published to the simulated one, so that its power and energy follow. Trace lengths are scaled down to
fit the context window, so tokens are scaled up again before the card is asked.
"""

from __future__ import annotations

import threading
import time
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vllm.v1.worker.cpu_worker import CPUWorker

from kvwatt_sim import gpu
from kvwatt_sim.cards import load
from kvwatt_sim.nvml.control import SimGpus

if TYPE_CHECKING:
    from typing import Any

    from vllm.v1.core.sched.output import SchedulerOutput

STATE_ENV, CARD_ENV, SCALE_ENV = "SLOWED_STATE", "SLOWED_CARD", "SLOWED_TOKEN_SCALE"
IDLE_AFTER_S = 0.03  # longer than the host's work between two steps


class Batch(NamedTuple):
    """What one step computes, in tokens of the unscaled trace."""

    decode_batch: int
    kv_tokens: float
    prefill_tokens: float
    prefill_context_tokens: float


def batch_of(step: SchedulerOutput, scale: float) -> Batch:
    """The batch that vLLM's scheduler put together: decodes compute one token, all else is prefill."""
    cached = step.scheduled_cached_reqs
    seen = zip(cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True)
    fresh = [(r.req_id, r.num_computed_tokens, 0) for r in step.scheduled_new_reqs]
    decodes, kv, prefill, pairs = 0, 0, 0, 0.0
    for request_id, computed, output in [*seen, *fresh]:
        tokens = step.num_scheduled_tokens[request_id]
        if output > 0 and tokens == 1:
            decodes, kv = decodes + 1, kv + computed
        else:
            prefill, pairs = prefill + tokens, pairs + tokens * (computed + tokens / 2)
    # The context behind one chunk of `prefill` tokens that attends to as many pairs.
    context = pairs / prefill - prefill / 2 if prefill else 0.0
    return Batch(decodes, scale * kv, scale * prefill, scale * context)


class Pace:
    """Steps of the card's length on the simulated GPU 0, one after the other; idle when none follows."""

    def __init__(self) -> None:
        self._card = load(environ[CARD_ENV])
        self._scale = float(environ[SCALE_ENV])
        self._gpus = SimGpus.open(Path(environ[STATE_ENV]))
        self._lock = threading.Lock()
        self._end_s = 0.0
        self._busy = False
        threading.Thread(target=self._idle_when_silent, daemon=True).start()

    def begin(self, step: SchedulerOutput) -> float:
        """Publish the step's activity and return the monotonic time at which it ends."""
        batch = batch_of(step, self._scale)
        now_s = time.monotonic()
        # Requests seen before mean that this step follows the last one: the host's work between the
        # two is part of the card's step time and must not be paid twice.
        follows = bool(step.scheduled_cached_reqs.req_ids)
        with self._lock:
            cost = gpu.step(self._card, self._gpus.load_clock_mhz(0), *batch)
            start_s = self._end_s if follows and self._end_s else now_s
            self._end_s = max(start_s + cost.time_s, now_s)
            self._gpus.publish(0, cost.compute, cost.memory)
            self._busy = True
            return self._end_s

    def _idle_when_silent(self) -> None:
        while True:
            time.sleep(IDLE_AFTER_S)
            with self._lock:
                if self._busy and time.monotonic() > self._end_s + IDLE_AFTER_S:
                    self._gpus.publish(0, 0.0, 0.0)
                    self._busy = False


class SlowedWorker(CPUWorker):
    """vLLM's CPU worker, no faster than the simulated GPU."""

    _pace: Pace | None = None

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Compute the step, then wait for the simulated GPU to be done with it."""
        if scheduler_output.total_num_scheduled_tokens == 0:
            return super().execute_model(scheduler_output)
        if self._pace is None:
            self._pace = Pace()
        end_s = self._pace.begin(scheduler_output)
        output = super().execute_model(scheduler_output)
        time.sleep(max(end_s - time.monotonic(), 0.0))
        return output
