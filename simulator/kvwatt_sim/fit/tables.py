"""The published tables as points that the laws can be compared with."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

L20_FOLDER = "profiles/l20_qwen2.5-7b"
A100_KERNELS = "power/a100_rtxpro6000_freq_x_powercap.csv"
A100_DECODE = "profiles/a100_energyllm/llama31_8b_recovered.csv"
A100_IDLE_W = 50.0  # assumed: the tables hold no idle reading


@dataclass(frozen=True, slots=True)
class StepPoint:
    """One measured step: decodes or one whole prompt."""

    clock_mhz: float
    decode_batch: int
    kv_tokens: int
    prefill_tokens: int
    time_s: float
    power_w: float
    prefill_context_tokens: float = 0.0

    @property
    def is_decode(self) -> bool:
        return self.decode_batch > 0


@dataclass(frozen=True, slots=True)
class PowerPoint:
    """Measured power at a known activity; `weight` is its trust in the fit."""

    clock_mhz: float
    compute: float
    memory: float
    power_w: float
    weight: float = 1.0


def l20_steps(data: Path) -> tuple[StepPoint, ...]:
    """Decode and prefill of Qwen2.5-7B on the L20. Raises OSError, KeyError, ValueError."""
    folder = data / L20_FOLDER
    return tuple(_l20_decodes(folder)) + tuple(_l20_prefills(folder))


def l20_idle(data: Path) -> tuple[PowerPoint, ...]:
    """Power of the L20 with a model loaded, nothing running and the clock locked."""
    rows = _rows(data / L20_FOLDER / "static_7b_tp1.csv")
    locked = ((row["state"].partition("@"), row) for row in rows)
    return tuple(
        PowerPoint(float(clock), 0.0, 0.0, float(row["power_w"]))
        for (state, _, clock), row in locked
        if state == "active_idle" and clock
    )


def a100_power(data: Path) -> tuple[PowerPoint, ...]:
    """A100: compute-bound and memory-bound kernels at the 300 W cap, and mean power of decoding.

    Decoding of Llama-3.1-8B is taken as 75 % memory-bound and 10 % compute-bound work: the share of
    the weights' read in a step. Its table mixes in runs that ended early; batches 4-32 are steady.
    """
    kernels = {"pi-solver": (1.0, 0.0), "babelstream": (0.0, 1.0)}
    points = [
        PowerPoint(float(row["freq_mhz"]), *kernels[row["bench"]], float(row["avg_power_w"]))
        for row in _rows(data / A100_KERNELS)
        if row["gpu"].startswith("A100") and row["bench"] in kernels and row["power_limit_w"] == "300"
    ]
    points.extend(
        PowerPoint(float(row["freq_mhz"]), 0.1, 0.75, float(row["avg_power_w"]), 0.3)
        for row in _rows(data / A100_DECODE)
        if 4 <= int(row["batch"]) <= 32
    )
    points.extend(PowerPoint(clock, 0.0, 0.0, A100_IDLE_W, 2.0) for clock in (705.0, 1410.0))
    return tuple(points)


def _l20_decodes(folder: Path) -> Iterator[StepPoint]:
    for row in _rows(folder / "decode_7b_tp1.csv"):
        batch = int(row["batch"])
        kv_tokens = batch * int(row["context_tokens"])
        time_s, power_w = float(row["step_seconds"]), float(row["power_w_busy_est"])
        yield StepPoint(float(row["freq_mhz"]), batch, kv_tokens, 0, time_s, power_w)


def _l20_prefills(folder: Path) -> Iterator[StepPoint]:
    for row in _rows(folder / "prefill_7b_tp1.csv"):
        tokens = int(row["input_tokens"])
        time_s, power_w = float(row["seconds"]), float(row["power_w_busy_est"])
        yield StepPoint(float(row["freq_mhz"]), 0, 0, tokens, time_s, power_w)


def _rows(path: Path) -> Iterator[Mapping[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)
