"""The step time of a compiled model at one clock, corrected by what the last steps took.

Per-step records tell where a model is off: small batches, the last chunk of a prompt. A table over
octaves of batch and prompt chunk holds the recent mean of log(observed / predicted), each cell shrunk
towards all steps of its kind (with or without prompts), those towards no correction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from kvwatt.compiled import CompiledModel

Floats = npt.NDArray[np.float64]

_OCTAVES = 12
_SHRINK_STEPS = 20.0
_LIMIT = math.log(2.0)  # a step that is further off is an outlier: a pause, another process


class ClockPace:
    """One column of the table: a lookup costs the same whatever the number of clocks."""

    def __init__(
        self, model: CompiledModel, clock_mhz: int, correction: PaceCorrection | None = None
    ) -> None:
        if clock_mhz not in model.clocks_mhz:
            raise ValueError(f"clock_mhz = {clock_mhz}: one of {model.clocks_mhz} is needed")
        self._correction = correction
        column = model.clocks_mhz.index(clock_mhz)
        self._model = replace(
            model,
            clocks_mhz=(clock_mhz,),
            step_s=np.ascontiguousarray(model.step_s[:, column : column + 1]),
            busy_w=np.ascontiguousarray(model.busy_w[:, column : column + 1]),
            idle_w=model.idle_w[column : column + 1],
        )

    def step_s(self, decode_batch: Floats, kv_tokens: Floats, prefill: Floats) -> Floats:
        """Seconds of a step at n loads: (n,)."""
        bare = self._model.step_time_s(decode_batch, kv_tokens, prefill)[:, 0]
        if self._correction is None:
            return bare
        return bare * self._correction.factor(decode_batch, prefill)


class PaceCorrection:
    """Learns from single steps. Forgets over `memory_steps` steps of a cell."""

    def __init__(self, memory_steps: float = 1000.0) -> None:
        if not (math.isfinite(memory_steps) and memory_steps >= 1):
            raise ValueError(f"memory_steps must be finite and >= 1, got {memory_steps}")
        self._memory_steps = memory_steps
        self._count = np.zeros((_OCTAVES, _OCTAVES))
        self._sum = np.zeros((_OCTAVES, _OCTAVES))
        self._log_factor = np.zeros((_OCTAVES, _OCTAVES))

    @property
    def steps(self) -> float:
        """How many recent steps it rests on."""
        return float(self._count.sum())

    @property
    def overall(self) -> float:
        """Typical factor over the steps it rests on; 1 without any."""
        return math.exp(float((self._log_factor * self._count).sum()) / max(self.steps, 1.0))

    def update(self, decode_batch: Floats, prefill: Floats, predicted_s: Floats, observed_s: Floats) -> None:
        """Learn from n steps, oldest first; those off by more than a factor of two teach nothing."""
        with np.errstate(divide="ignore", invalid="ignore"):
            residual = np.log(observed_s / predicted_s)
        good = np.abs(residual) <= _LIMIT  # NaN is not
        flat = (_octave(decode_batch) * _OCTAVES + _octave(prefill))[good]
        size = _OCTAVES * _OCTAVES
        new = np.bincount(flat, minlength=size).reshape(_OCTAVES, _OCTAVES)
        keep = np.exp(-new / self._memory_steps)
        self._count = self._count * keep + new
        added = np.bincount(flat, residual[good], size).reshape(_OCTAVES, _OCTAVES)
        self._sum = self._sum * keep + added
        for kind in (slice(0, 1), slice(1, _OCTAVES)):
            count, total = self._count[:, kind], self._sum[:, kind]
            pooled = total.sum() / (count.sum() + _SHRINK_STEPS)
            self._log_factor[:, kind] = (total + _SHRINK_STEPS * pooled) / (count + _SHRINK_STEPS)

    def paced(self, model: CompiledModel) -> CompiledModel:
        """The model as corrected by now; what is learned later does not change it."""
        own = {side.name: getattr(model, side.name) for side in fields(CompiledModel) if side.init}
        return PacedModel(**own, log_factor=self._log_factor.copy())

    def factor(self, decode_batch: Floats, prefill: Floats) -> Floats:
        """What to multiply predictions by at n loads."""
        return _factor(self._log_factor, decode_batch, prefill)


@dataclass(frozen=True, slots=True)
class PacedModel(CompiledModel):
    """A compiled model whose step times are corrected by load; the same factor at every clock."""

    log_factor: Floats  # (octaves of batch, octaves of prompt chunk)

    def step_time_s(self, decode_batch: Floats, kv_tokens: Floats, prefill_tokens: Floats) -> Floats:
        bare = CompiledModel.step_time_s(self, decode_batch, kv_tokens, prefill_tokens)
        factor = _factor(self.log_factor, np.asarray(decode_batch), np.asarray(prefill_tokens))
        return np.asarray(bare * factor[:, None])

    def step_and_power(
        self, decode_batch: Floats, kv_tokens: Floats, prefill_tokens: Floats
    ) -> tuple[Floats, Floats]:
        bare, power_w = CompiledModel.step_and_power(self, decode_batch, kv_tokens, prefill_tokens)
        factor = _factor(self.log_factor, np.asarray(decode_batch), np.asarray(prefill_tokens))
        return np.asarray(bare * factor[:, None]), power_w

    def with_prompts(
        self, decode_batch: float, kv_tokens: float, prefills: tuple[float, ...]
    ) -> tuple[Floats, Floats]:
        bare, power_w = CompiledModel.with_prompts(self, decode_batch, kv_tokens, prefills)
        row = self.log_factor[_octave_of(decode_batch)].tolist()
        factor = np.array([[math.exp(row[_octave_of(prefill)])] for prefill in prefills])
        return np.asarray(bare * factor), power_w


def _factor(log_factor: Floats, decode_batch: Floats, prefill: Floats) -> Floats:
    return np.asarray(np.exp(log_factor[_octave(decode_batch), _octave(prefill)]))


def _octave(tokens: Floats) -> npt.NDArray[np.intp]:
    """0 for none, 1 for 1, 2 for 2 and 3, ..."""
    octave = np.floor(np.log2(np.maximum(tokens, 0.5))) + 1.0
    return np.clip(octave, 0, _OCTAVES - 1).astype(np.intp)


def _octave_of(tokens: float) -> int:
    """`_octave` of one number, 0 or more."""
    return min(int(tokens).bit_length(), _OCTAVES - 1)
