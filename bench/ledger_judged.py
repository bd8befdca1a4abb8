"""Simulated days judged: what the ledger's windows say of each day's saving, against the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RegularGridInterpolator

from kvwatt import artifact
from kvwatt.counterfactual import at_clocks
from kvwatt.holdout import Arm, HoldoutParams
from kvwatt.savings_stats import Window, Work, estimate
from kvwatt.state import Slo, SloTarget
from kvwatt.traffic import PROMPT_LEVELS, SHORT_LEVELS, Traffic
from kvwatt_sim.cards import load
from kvwatt_sim.demo.model import cached_model
from ledger_days import ARMS, FLOOR_MHZ, OUTPUT, PROMPT, ROW, STEP_S, Floats, Laws, arrivals, drawn_arms, live

CARD = "l20"
PEAK_PER_S = 2.5
ROW_S = ROW * STEP_S
BIASES = ("model right", "model 15 % high, 20 % more so at load", "no model")
LEVEL, SLOPE = 0.15, 0.2  # of the second
SLO = Slo(SloTarget(3.0), SloTarget(0.1), SloTarget(60.0))


@dataclass(frozen=True)
class Days:
    """Rows of days, (days, rows): joules used, and had it been default or control throughout; work."""

    used_j: Floats
    default_j: Floats
    unheld_j: Floats
    prompt: Floats
    output: Floats
    model_j: Floats
    arm: npt.NDArray[np.int8]
    slot: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Judged:
    """One day. `true_j`: saved in its time in control."""

    windows: int
    baseline_j: float
    saved_j: float
    half_j: float
    true_j: float

    @property
    def contains(self) -> bool:
        return abs(self.saved_j - self.true_j) <= self.half_j


@cache
def _laws() -> Laws:
    return Laws.of(load(CARD))


@cache
def _model_w() -> RegularGridInterpolator:
    """What the trained model expects at driver default, by rates of generated and prompt tokens."""
    card = load(CARD)
    shape = card.engine_shape()
    clocks = tuple(c for c in card.supported_mhz if c >= FLOOR_MHZ)
    model = artifact.load_compiled(Path(cached_model(card)), clocks, shape)
    prompts = -PROMPT * np.log1p(-np.minimum(PROMPT_LEVELS, 0.995))
    outputs = -OUTPUT * np.log1p(-np.minimum(SHORT_LEVELS, 0.99))
    traffic = Traffic(
        arrival_per_s=1.0,
        arrival_upper_per_s=1.3,
        recent_per_s=1.0,
        dispersion=1.2,
        prompt_mean_tokens=PROMPT,
        prompt_sd_tokens=PROMPT,
        prompt_quantiles_tokens=prompts,
        output_mean_tokens=OUTPUT,
        output_short_tokens=outputs,
        output_high_tokens=5 * OUTPUT,
        unstarted=0.0,
        oldest_wait_s=0.0,
        burst_tokens=0.0,
        exposure_s=60.0,
        finished=100.0,
    )
    generated, computed = np.linspace(0.0, 3200.0, 33), np.linspace(0.0, 16_000.0, 33)
    watts = [
        [float(at_clocks(model, shape, SLO, traffic, p, g, 1.0).power_w[-1]) for p in computed]
        for g in generated
    ]
    return RegularGridInterpolator(
        (generated, computed), np.array(watts), bounds_error=False, fill_value=None
    )


def simulate(seed: int, days: int, params: HoldoutParams) -> Days:
    """Days of one seed: the same arrivals under control with windows, without, and at default."""
    rng = np.random.default_rng(seed)
    come, before = arrivals(rng, days, PEAK_PER_S), arrivals(rng, days, PEAK_PER_S)
    arms, slots, _ = drawn_arms(params, come, before, [rng.bytes(16) for _ in range(days)])
    held = np.isin(arms, [ARMS.index(Arm.WARMUP), ARMS.index(Arm.DEFAULT)])
    used, default, unheld = (
        live(_laws(), come, flags) for flags in (held, np.ones_like(held), np.zeros_like(held))
    )
    output, prompt = _rows(used.output), _rows(used.prompt)
    rates = np.stack((np.clip(output / ROW_S, 0, 3200), np.clip(prompt / ROW_S, 0, 16_000)), axis=-1)
    return Days(
        used_j=_rows(used.energy_j),
        default_j=_rows(default.energy_j),
        unheld_j=_rows(unheld.energy_j),
        prompt=prompt,
        output=output,
        model_j=_model_w()(rates) * ROW_S,
        arm=arms[:, ::ROW],
        slot=slots[:, ::ROW],
    )


def _rows(steps: Floats) -> Floats:
    return np.asarray(steps.reshape(len(steps), -1, ROW).sum(axis=2))


def _biased(days: Days, bias: str) -> Floats:
    if bias == BIASES[2]:
        return np.zeros_like(days.model_j)
    if bias == BIASES[0]:
        return days.model_j
    load_ratio = days.output / days.output.mean(axis=1, keepdims=True)
    return np.asarray(days.model_j * (1.0 + LEVEL + SLOPE * (load_ratio - 1.0)))


def judge(days: Days, bias: str, span: int = 1) -> Iterator[Judged]:
    """Every stretch of `span` days that has an interval."""
    model_j = _biased(days, bias)
    for first in range(0, len(days.used_j) - span + 1, span):
        windows: list[Window] = []
        work, used_j, true_j = Work(), 0.0, 0.0
        for day in range(first, first + span):
            windows += _windows(days, model_j, day)
            in_control = days.arm[day] == ARMS.index(Arm.CONTROLLED)
            work += _work(days, model_j, day, in_control)
            used_j += float(days.used_j[day][in_control].sum())
            true_j += float((days.default_j[day] - days.used_j[day])[in_control].sum())
        found = estimate(windows, work, used_j)
        if found is not None:
            yield Judged(found.windows, found.baseline_j, found.saved_j, found.half_width_j, true_j)


def _windows(days: Days, model_j: Floats, day: int) -> list[Window]:
    measured = days.arm[day] == ARMS.index(Arm.DEFAULT)
    slots = [measured & (days.slot[day] == slot) for slot in np.unique(days.slot[day][measured])]
    return [Window(_work(days, model_j, day, rows), float(days.used_j[day][rows].sum())) for rows in slots]


def _work(days: Days, model_j: Floats, day: int, mask: npt.NDArray[np.bool_]) -> Work:
    return Work(
        seconds=ROW_S * int(mask.sum()),
        prompt_tokens=float(days.prompt[day][mask].sum()),
        generation_tokens=float(days.output[day][mask].sum()),
        model_j=float(model_j[day][mask].sum()),
    )


def rivals(days: Days) -> dict[str, Floats]:
    """Error of other ways to tell the saving of each day, over the energy at default."""
    used, default = days.used_j.sum(axis=1), days.default_j.sum(axis=1)
    true = default - used
    tokens = days.output.sum(axis=1)
    per_token = np.roll(default / tokens, 1)  # of another day, at default
    watts = np.roll(default, 1)
    told = {
        "model's figure, model right": _biased(days, BIASES[0]).sum(axis=1) - used,
        f"model's figure, {BIASES[1]}": _biased(days, BIASES[1]).sum(axis=1) - used,
        "another day at default, energy": watts - used,
        "another day at default, J per token": per_token * tokens - used,
    }
    return {name: np.asarray((saved - true) / default) for name, saved in told.items()}
