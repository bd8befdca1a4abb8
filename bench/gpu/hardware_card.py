"""A hardware card (as simulator/kvwatt_sim/cards) of the GPU that was measured, every number with its source.

What was not measured is taken over from the card of a similar GPU and says so ("assumed").
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import gcd, isfinite
from pathlib import Path
from statistics import fmean

from loads import Shape
from readings import Facts

from kvwatt.profiles import ProfileRow
from kvwatt_sim.cards.card import Card
from kvwatt_sim.cards.load import load, load_file
from kvwatt_sim.fit.laws import Laws, busy_points, fit_power, fit_step, predict
from kvwatt_sim.fit.tables import PowerPoint, StepPoint
from kvwatt_sim.nvml.spec import ARCHITECTURES

LEAST_CLOCKS, LEAST_POINTS = 3, 30  # fewer do not tell the laws' 18 numbers
Number = tuple[float, str, str]  # value, how, source


@dataclass(frozen=True, slots=True)
class Found:
    """What the kit measured. None: not measured."""

    facts: Facts
    shape: Shape | None
    rows: Sequence[ProfileRow]
    when: str
    idle_mhz: int | None = None
    idle_w: float | None = None
    parked_w: float | None = None
    switch_s: float | None = None
    energy_period_s: float | None = None


def fitted(found: Found, like: Card) -> Card:
    """The card with the laws that fit the rows; the similar card's own where they tell too little."""
    base = replace(like, supported_mhz=found.facts.supported_mhz, power_cap_w=found.facts.enforced_limit_w)
    if not tells_laws(found.rows):
        return base
    top = float(max(found.facts.supported_mhz))
    step, power = replace(base.step, f_ref_mhz=top), replace(base.power, f_ref_mhz=top)
    laws = Laws(step, power, base.supported_mhz, base.power_cap_w)
    points = [_point(row) for row in found.rows if row.kind in ("decode", "prefill")]
    laws = replace(laws, step=fit_step(points, laws))
    drawn = [point for point in points if isfinite(point.power_w)]
    idle = () if found.idle_w is None else (PowerPoint(top, 0.0, 0.0, found.idle_w, weight=2.0),)
    power = fit_power(busy_points(drawn, laws) + idle, top, base.power_cap_w)
    return replace(base, step=laws.step, power=power)


def tells_laws(rows: Sequence[ProfileRow]) -> bool:
    """Whether the rows are enough to fit step time and power over clock and load."""
    return len({row.clock_mhz for row in rows}) >= LEAST_CLOCKS and len(rows) >= LEAST_POINTS


def fit_errors(card: Card, rows: Sequence[ProfileRow]) -> tuple[float, float]:
    """Mean relative error of the card's step times and of its power over these rows."""
    time_off, power_off = [], []
    for row in rows:
        time_s, power_w = predict(card, _point(row))
        time_off.append(abs(time_s / row.step_time_s - 1.0))
        if isfinite(row.power_w) and row.power_w > 0:
            power_off.append(abs(power_w / row.power_w - 1.0))
    return fmean(time_off), fmean(power_off or [float("nan")])


def write(path: Path, found: Found, like: str) -> Path:
    """The card's file; read back before it counts. Raises OSError, CardError, ValueError."""
    template = load(like)
    card = fitted(found, template)
    path.write_text(_render(path.stem, found, template, card), encoding="utf-8")
    load_file(path)
    return path


def _point(row: ProfileRow) -> StepPoint:
    batch, kv = round(row.decode_batch), round(row.kv_tokens)
    return StepPoint(row.clock_mhz, batch, kv, round(row.prefill_tokens), row.step_time_s, row.power_w)


def _render(name: str, found: Found, like: Card, card: Card) -> str:
    facts, shape = found.facts, found.shape
    model = shape.model if shape is not None else like.model
    sources = {
        "measured": f"{facts.name}, driver {facts.driver}, {found.when}; bench/gpu",
        "driver": f"what NVML {facts.nvml} states of this GPU",
        "like": f"not measured: as the card {like.name} has it",
        "served": f"{shape.software if shape else 'no load'}; {model}",
    }
    how, law = "assumed", "like"
    if tells_laws(found.rows):
        how, law = "fitted", "fit"
        off_s, off_w = fit_errors(card, found.rows)
        off = f"mean error of step time {off_s:.1%}, of power {off_w:.1%}"
        sources["fit"] = f"{len(found.rows)} points of {sources['measured']}; {off}"
    head = {"name": name, "gpu_name": facts.name, "arch": _arch(facts, like), "model": model}
    lines = ['# Written by bench/gpu. What is "assumed" was not measured on this GPU.']
    lines += [f"{key} = {_quoted(text)}" for key, text in head.items()]
    lines += ["", "[sources]", *(f"{key} = {_quoted(text)}" for key, text in sources.items())]
    lines += ["", "[gpu]", *_rows(_gpu(found, like))]
    lines += ["", "[power]", *_rows(_law(asdict(card.power), how, law))]
    lines += ["", f"[engine.tp{card.tp}]", *_rows(_engine(shape, like))]
    lines += ["", f"[engine.tp{card.tp}.step]", *_rows(_law(asdict(card.step), how, law))]
    return "\n".join(lines) + "\n"


def _gpu(found: Found, like: Card) -> Mapping[str, Number]:
    facts, clocks = found.facts, found.facts.supported_mhz
    step = 0
    for before, after in pairwise(clocks):
        step = gcd(step, after - before)
    cap_w = facts.default_limit_w or facts.enforced_limit_w
    return {
        "memory_total_bytes": (facts.memory_total_bytes, "measured", "driver"),
        "memory_clock_mhz": (facts.memory_mhz, "measured", "driver"),
        "min_mhz": (clocks[0], "measured", "driver"),
        "max_mhz": (clocks[-1], "measured", "driver"),
        "step_mhz": (step or 1, "measured", "driver"),
        "boost_mhz": (min(facts.max_sm_mhz, clocks[-1]), "measured", "driver"),
        "idle_mhz": _measured(found.idle_mhz, like.idle_mhz),
        "power_cap_w": (cap_w, "measured", "driver"),
        "min_cap_w": (min(facts.least_limit_w or cap_w, cap_w), "measured", "driver"),
        "max_cap_w": (max(facts.most_limit_w or cap_w, cap_w), "measured", "driver"),
        "parked_w": _measured(found.parked_w, like.parked_w),
        "switch_latency_s": _measured(found.switch_s, like.switch_latency_s),
        "energy_update_s": _measured(found.energy_period_s, like.energy_update_s),
    }


def _engine(seen: Shape | None, like: Card) -> Mapping[str, Number]:
    shape = seen or Shape("", "")

    def served(value: int | None, other: float) -> Number:
        return (other, "assumed", "like") if value is None else (value, "measured", "served")

    return {
        "weights_bytes": served(shape.weights_bytes, like.weights_bytes),
        "kv_bytes_per_token": served(shape.kv_bytes_per_token, like.kv_bytes_per_token),
        "block_size": served(shape.block_size, like.block_size),
        "num_blocks": served(shape.num_blocks, like.num_blocks),
        "max_model_len": served(shape.max_model_len, like.max_model_len),
    }


def _law(values: Mapping[str, float], how: str, source: str) -> Mapping[str, Number]:
    return {key: (float(value), how, source) for key, value in values.items()}


def _measured(value: float | None, other: float) -> Number:
    return (other, "assumed", "like") if value is None else (value, "measured", "measured")


def _rows(numbers: Mapping[str, Number]) -> list[str]:
    return [
        f'{key} = {{ value = {_plain(value)}, how = "{how}", source = "{source}" }}'
        for key, (value, how, source) in numbers.items()
    ]


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(f"{value:.6g}"))


def _arch(facts: Facts, like: Card) -> str:
    known = {number: name for name, number in ARCHITECTURES.items()}
    return known.get(facts.architecture if facts.architecture is not None else -1, like.arch)


def _quoted(text: str) -> str:
    """A TOML basic string of one line."""
    plain = " ".join(text.split()).replace("\\", "/").replace('"', "'")
    tomllib.loads(f'x = "{plain}"')
    return f'"{plain}"'
