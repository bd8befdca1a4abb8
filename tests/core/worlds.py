"""A small trained model and the states of an engine, shared by the tests of the decision."""

from __future__ import annotations

from functools import cache

import numpy as np

from kvwatt.compiled import CompiledModel, compile_model
from kvwatt.profiles import table_of
from kvwatt.state import EngineShape, EngineState, Slo, SloTarget
from kvwatt.traffic import PROMPT_LEVELS, SHORT_LEVELS, Traffic
from kvwatt.training import Origin, train
from kvwatt_sim.cards import Card, load
from kvwatt_sim.virtual_profile import virtual_profile

SLO = Slo(SloTarget(3.0), SloTarget(0.2), SloTarget(60.0))
FLOOR_MHZ = 900  # the lowest clock at which the card was measured


@cache
def card() -> Card:
    return load("l20")


@cache
def shape() -> EngineShape:
    return card().engine_shape()


@cache
def model() -> CompiledModel:
    """Trained on a virtual profile of the L20."""
    rows = virtual_profile(card(), seed=3)
    trained = train(table_of(rows), Origin(card().gpu_name), folds=3, by_clock=False)
    clocks = tuple(clock for clock in card().supported_mhz if clock >= FLOOR_MHZ)
    return compile_model(trained, clocks, shape())


def traffic(
    arrival_per_s: float = 1.5,
    output_mean: float = 210.0,
    prompt_mean: float = 1150.0,
    unstarted: float = 0.0,
    oldest_wait_s: float = 0.0,
    exposure_s: float = 60.0,
    finished: float = 200.0,
) -> Traffic:
    """Conversation traffic with exponential-looking lengths."""
    prompts = -prompt_mean * np.log1p(-np.minimum(PROMPT_LEVELS, 0.995))
    outputs = -output_mean * np.log1p(-np.minimum(SHORT_LEVELS, 0.99))
    return Traffic(
        arrival_per_s=arrival_per_s,
        recent_per_s=arrival_per_s,
        arrival_upper_per_s=1.2 * arrival_per_s + 0.1,
        dispersion=1.2,
        prompt_mean_tokens=prompt_mean,
        prompt_sd_tokens=prompt_mean,
        prompt_quantiles_tokens=prompts,
        output_mean_tokens=output_mean,
        output_short_tokens=np.maximum(outputs, 1.0),
        output_high_tokens=3 * output_mean,
        unstarted=unstarted,
        oldest_wait_s=oldest_wait_s,
        burst_tokens=0.0,
        exposure_s=exposure_s,
        finished=finished,
    )


def state(running: int = 12, waiting: int = 0, now_s: float = 100.0, capacity: int = 0) -> EngineState:
    return EngineState(now_s, running, waiting, running * 1250.0, waiting_for_capacity=capacity)
