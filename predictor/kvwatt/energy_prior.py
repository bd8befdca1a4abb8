"""Power of a window before anything was learned of it: the step model's law, or prices per unit of work.

steps   of all steps, ch carry a chunk of c prompt tokens, the others only decode:
        busy   = (n - ch) T(f, b, kv, 0) + ch T(f, b, kv, c)          seconds of work per second
        P      = [(n - ch) T P|decode + ch T P|mixed] / max(busy, 1) + (1 - busy)+ P_idle(f)
        T and P are the step model's: it works from a shipped card, before anything was measured here.

work    P = tp (w0 + w1 x + (w2 + w3 x^3) u) + sum over kinds of work of (a_k + b_k x^2) rate_k
        x = clock / reference, u = utilization; x^2 stands for the voltage squared; all prices >= 0.
        Kinds: steps, prompt tokens, output tokens, KV tokens read, FLOPs, bytes. Fitted to windows.

both    the second law with the first one's watts as one more column: about as good as the better of the two
        on every simulated GPU, and from sixty windows on (docs/energy-model.md)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kvwatt.energy_factors import Windows
from kvwatt.lattice import Floats

BLOCK = 64  # windows at a time: a step model computes all clocks of a block for all its loads
LEAST_CHUNK = 16.0
WORK_TERMS = 4 + 2 * 6 + 1


class StepEnergy(Protocol):
    """Step time and power of an engine by clock and load: `throughput.StepModel`."""

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats: ...
    def power_w(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats: ...
    def idle_power_w(self, clock_mhz: Floats, /) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Load:
    """What a window's steps carried on average; NaN where it is not known."""

    clock_mhz: Floats
    steps_per_s: Floats
    batch: Floats
    kv_tokens: Floats
    chunk_tokens: Floats
    chunks_per_s: Floats


def load_of(windows: Windows) -> Load:
    """The mean step of each window: counters tell the batch better than the sampled gauge does."""
    steps = windows.column("steps_per_s")
    output, prompts = windows.column("output_tokens_per_s"), windows.column("prompt_tokens_per_s")
    running = windows.column("running")
    with np.errstate(invalid="ignore", divide="ignore"):
        batch = np.where(steps > 0, output / steps, 0.0)
    batch = np.where(np.isfinite(running), np.minimum(batch, np.maximum(running, 1.0) * 1.5), batch)
    budget = np.nan_to_num(windows.column("token_budget"), nan=2048.0)
    mean = np.nan_to_num(windows.column("prompt_mean_tokens"), nan=512.0)
    chunk = np.clip(mean, LEAST_CHUNK, np.maximum(budget, LEAST_CHUNK))
    kv = windows.column("kv_usage") * windows.column("kv_capacity_tokens")
    chunks = np.minimum(np.nan_to_num(prompts) / chunk, np.nan_to_num(steps))
    return Load(windows.column("clock_mhz"), steps, batch, np.nan_to_num(kv), chunk, chunks)


def step_power_w(model: StepEnergy, windows: Windows) -> Floats:
    """Mean watts of each window by the step model, (n,); NaN where clock, steps or tokens are unknown."""
    load = load_of(windows)
    known = np.isfinite(load.clock_mhz) & np.isfinite(load.steps_per_s) & np.isfinite(load.batch)
    known &= load.clock_mhz > 0
    found = np.full(len(windows), np.nan)
    rows = np.flatnonzero(known)
    rows = rows[np.argsort(load.clock_mhz[rows], kind="stable")]
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        found[block] = _block_w(model, load, block)
    return found


def _block_w(model: StepEnergy, load: Load, rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Floats:
    clock, batch, kv = load.clock_mhz[rows], load.batch[rows], load.kv_tokens[rows]
    chunk, chunks = load.chunk_tokens[rows], load.chunks_per_s[rows]
    none = np.zeros_like(clock)
    plain = np.maximum(load.steps_per_s[rows] - chunks, 0.0) * model.step_time_s(clock, batch, kv, none)
    mixed = chunks * model.step_time_s(clock, batch, kv, chunk)
    busy = plain + mixed
    joules = plain * model.power_w(clock, batch, kv, none) + mixed * model.power_w(clock, batch, kv, chunk)
    idle_w = model.idle_power_w(clock)
    return np.asarray(joules / np.maximum(busy, 1.0) + np.maximum(1.0 - busy, 0.0) * idle_w)


@dataclass(frozen=True, slots=True)
class WorkLaw:
    """The second law of the module; `scale` brings each column to the size of one."""

    reference_mhz: float
    scale: tuple[float, ...]
    watts: tuple[float, ...]  # per column, >= 0
    usual: tuple[float, ...]  # what stands for a column that is not known: its mean in training
    gpus: float = 1.0  # where tp is not known

    def __post_init__(self) -> None:
        for name in ("scale", "watts", "usual"):
            values = np.asarray(getattr(self, name))
            if values.shape != (WORK_TERMS,) or not np.all(np.isfinite(values)) or np.any(values < 0):
                raise ValueError(f"work law: {name} needs {WORK_TERMS} finite non-negative numbers")
        if not (self.reference_mhz > 0 and min(self.scale) > 0 and self.gpus > 0):
            raise ValueError("work law: reference_mhz, gpus and scale must be positive")

    def power_w(self, windows: Windows, step_w: Floats | None = None) -> Floats:
        """Mean watts of each window, (n,); `step_w`: those of the step model, where it is a column."""
        columns = work_columns(windows, self.reference_mhz, self.gpus, step_w) / np.array(self.scale)
        columns = np.where(np.isfinite(columns), columns, np.array(self.usual))
        return np.asarray(columns @ np.array(self.watts))


def work_columns(windows: Windows, reference_mhz: float, gpus: float, step_w: Floats | None) -> Floats:
    """The columns of the work law, (n, WORK_TERMS); NaN where a factor is not known, `gpus` for tp."""
    x = windows.column("clock_mhz") / reference_mhz
    busy, load = windows.column("utilization"), load_of(windows)
    reads = load.kv_tokens * load.steps_per_s
    rates = [windows.column(name) for name in ("steps_per_s", "prompt_tokens_per_s", "output_tokens_per_s")]
    rates += [reads, windows.column("flops_per_s"), windows.column("bytes_per_s")]
    tp = np.nan_to_num(windows.column("tp"), nan=gpus)  # each GPU draws its own resting power
    terms = [tp, tp * x, tp * busy, tp * busy * x**3]
    for rate in rates:
        terms += [rate, rate * x**2]
    terms.append(np.full(len(windows), np.nan) if step_w is None else step_w)
    return np.stack(terms, axis=1)
