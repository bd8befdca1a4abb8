"""What is compared: capacity, promises, thinning, seeds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt_sim.replay import scenario
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.replay.jobs import open_trace
from kvwatt_sim.replay.scenario import (
    CAPACITY_SEEDS,
    CAPACITY_TTFT_S,
    SCORING_SEEDS,
    TUNING_FROM,
    ScenarioError,
    capacity,
    case,
    fitted,
    plant,
    promises,
    shape_for,
    thin,
)
from kvwatt_sim.traces import TraceRequest, mean_rate_per_s


def test_what_is_scored_is_never_tuned_on() -> None:
    """Scoring, tuning and capacity have seeds of their own."""
    assert max(SCORING_SEEDS) < TUNING_FROM < min(CAPACITY_SEEDS)


@pytest.mark.parametrize("name", ["l20", "a100-tp2"])
def test_capacity_is_where_ttft_reaches_its_limit(name: str, trace: tuple[TraceRequest, ...]) -> None:
    """At capacity p99 TTFT is within 3 s; a twentieth above it is not."""
    card = plant(name)
    shape, requests = shape_for(card, "paper"), fitted(card, trace)
    found = capacity(card, shape, requests)
    assert 0.5 * CAPACITY_TTFT_S < found.ttft_s <= CAPACITY_TTFT_S
    ttft = []
    for seed in CAPACITY_SEEDS:
        more = thin(requests, 1.05 * found.rate_per_s, seed)
        done = replay(card, shape, more, FixedClock(None), scenario.horizon_s(more))
        ttft.append(done.served.latencies()["ttft"])
    assert np.quantile(np.concatenate(ttft), 0.99) > CAPACITY_TTFT_S


def test_presets_are_as_defined(trace: tuple[TraceRequest, ...]) -> None:
    """Paper: 2x TTFT and 1x E2E at capacity, 200 ms; strict: 1x TTFT, half of paper's E2E, 100 ms, ITL."""
    card = plant("l20")
    at = {name: capacity(card, shape_for(card, name), trace) for name in ("paper", "strict")}
    paper, strict = (promises(card, name, trace).slo for name in ("paper", "strict"))
    assert paper.ttft and paper.tbt and paper.e2e and not paper.itl
    assert (paper.ttft.limit_s, paper.tbt.limit_s) == (2.0 * at["paper"].ttft_s, 0.2)
    assert strict.ttft and strict.tbt and strict.e2e and strict.itl
    assert (strict.ttft.limit_s, strict.tbt.limit_s, strict.itl.limit_s) == (at["strict"].ttft_s, 0.1, 0.1)
    assert strict.e2e.limit_s == paper.e2e.limit_s / 2.0


@pytest.mark.parametrize("preset", ["paper", "strict"])
def test_the_top_clock_keeps_every_preset_at_half_load(preset: str, trace: tuple[TraceRequest, ...]) -> None:
    """A promise that no clock keeps would compare nothing."""
    setting = case(plant("l20"), trace, 0.5, preset, seed=TUNING_FROM)
    done = replay(setting.card, setting.shape, setting.requests, FixedClock(None), setting.until_s)
    assert min(done.attainment(setting.promises.slo).values()) >= 0.99


@settings(deadline=None, max_examples=25)
@given(rate=st.floats(0.5, 20.0), seed=st.integers(0, 50))
def test_thinning_gives_the_rate(trace: tuple[TraceRequest, ...], rate: float, seed: int) -> None:
    """Any rate within noise, below or above the trace's own; another seed keeps other requests."""
    kept = thin(trace, rate, seed)
    assert mean_rate_per_s(kept) == pytest.approx(rate, rel=0.25)
    assert kept == thin(trace, rate, seed)
    assert kept != thin(trace, rate, seed + 1)
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(kept))


def test_prompts_are_cut_to_the_model() -> None:
    """What is longer than the model's context is served as far as it goes; the rest is left alone."""
    card = plant("a100-tp2")
    long, short = TraceRequest(0.0, 14_050, 500), TraceRequest(1.0, 100, 10)
    assert fitted(card, (long, short)) == (
        replace(long, prompt_tokens=card.max_model_len - 500),
        short,
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("l21", "plant = 'l21': one of a100, h200, l20 is accepted"),
        ("l20-tp", "plant = 'l20-tp'"),
        ("l20-tp3", "tp = 3: this card has tp1"),
        ("l20-tpx", "plant = 'l20-tpx'"),
    ],
)
def test_unknown_plants_are_told(name: str, told: str) -> None:
    """The message names the value and what is accepted."""
    with pytest.raises(ScenarioError) as caught:
        plant(name)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("load", "preset"), [(0.0, "paper"), (float("nan"), "paper"), (9.0, "paper"), (0.5, "lax")]
)
def test_unknown_loads_and_presets_are_told(
    load: float, preset: str, trace: tuple[TraceRequest, ...]
) -> None:
    """Before anything is computed."""
    with pytest.raises(ScenarioError, match=r"is accepted"):
        case(plant("l20"), trace, load, preset, 1)


def test_the_azure_traces_make_cases(azure: Path) -> None:
    """Both real traces, on a plant with a short context too."""
    for name in ("conv", "code"):
        requests = open_trace(str(azure / f"AzureLLMInferenceTrace_{name}_2023.csv"))
        setting = case(plant("a100-tp2"), requests, 0.5, "paper", TUNING_FROM)
        assert len(setting.requests) > 100
