"""What the model would have said about an interval that is over: the basis of online calibration."""

from __future__ import annotations

import numpy as np

from kvwatt.compiled import CompiledModel
from kvwatt.traffic import Interval

MIN_ITERATIONS = 5.0  # fewer steps say more about scrape jitter than about the engine


def expected_itl_s(model: CompiledModel, step: Interval, clock_mhz: int, chunk_tokens: float) -> float | None:
    """Mean inter-token latency the model expects for `step` at `clock_mhz`.

    Prompts are taken to be computed `chunk_tokens` at a time: a large chunk costs more per token than a
    small one, which hides behind the weights being read.

    None for an interval that teaches nothing: idle at either end, or too few steps or tokens.
    """
    if not step.busy or step.iterations < MIN_ITERATIONS or step.itl_count <= 0:
        return None
    column = int(np.argmin(np.abs(np.asarray(model.clocks_mhz) - clock_mhz)))
    batch = np.array([max(step.running_mean, 1.0)] * 2)
    kv = np.array([step.kv_tokens_mean] * 2)
    decode_s, mixed_s = model.step_time_s(batch, kv, np.array([0.0, chunk_tokens]))[:, column]
    chunks_per_step = step.prompt_tokens / chunk_tokens / step.iterations
    return float(decode_s + max(mixed_s - decode_s, 0.0) * chunks_per_step)
