"""What the model would have said about steps that are over: the basis of online calibration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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


def expected_steps_s(
    model: CompiledModel,
    decodes: npt.NDArray[np.float64],
    kv_tokens: npt.NDArray[np.float64],
    prompt_tokens: npt.NDArray[np.float64],
    clock_mhz: int,
    chunk_tokens: float,
) -> npt.NDArray[np.float64]:
    """Seconds the model expects of n steps at `clock_mhz`, each with its own load.

    `prompt_tokens` may be booked with the step that completed a prompt: what is more than `chunk_tokens`
    was computed in the steps before, and is charged here as so many full chunks.
    """
    column = int(np.argmin(np.abs(np.asarray(model.clocks_mhz) - clock_mhz)))
    full, rest = np.divmod(prompt_tokens, chunk_tokens)
    loads = np.stack([np.zeros_like(rest), rest, np.full_like(rest, chunk_tokens)])
    batch, kv = np.tile(decodes, 3), np.tile(kv_tokens, 3)
    plain, last, chunk = model.step_time_s(batch, kv, loads.ravel())[:, column].reshape(3, -1)
    return np.asarray(plain + np.maximum(last - plain, 0.0) + full * np.maximum(chunk - plain, 0.0))
