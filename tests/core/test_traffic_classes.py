"""Traffic estimates fed with single finished requests."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import card, shape

from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests
from kvwatt.lengths import LengthModel
from kvwatt.projection import project
from kvwatt.state import EngineState, RequestState
from kvwatt.traffic import TrafficEstimator
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.workload import generate
from kvwattd.tap_stream import exact_histogram


def estimator() -> TrafficEstimator:
    """Two pages of a plant under load."""
    plant = VirtualPlant(card(), shape(), generate(1.5, 30.0, 4))
    learned = TrafficEstimator(LengthModel(), LengthModel())
    for second in (10.0, 20.0):
        plant.advance(second)
        learned.update(plant.snapshot())
    return learned


def test_lengths_by_class_serve_while_requests_are_told_singly() -> None:
    """From the first on, leaning on the histogram; where only pages are polled, the histogram's serve."""
    learned = estimator()
    learned.outputs.update(exact_histogram([100] * 50))
    before = learned.traffic()
    assert before is not None and before.lengths is learned.outputs
    learned.learn_requests([])
    after = learned.traffic()
    assert after is not None and isinstance(after.lengths, ClassLengths)
    rest = after.lengths.expected_remaining(Requests.known([1000.0], [0.0]))
    assert rest[0] == pytest.approx(learned.outputs.mean_tokens, rel=0.03)
    learned.learn_requests([FinishedRequest(100, 5)])
    moved = after.lengths.expected_remaining(Requests.known([1000.0], [0.0]))
    assert 0.85 * rest[0] < moved[0] < rest[0]
    plant = VirtualPlant(card(), shape(), generate(1.5, 30.0, 4))
    plant.advance(25.0)
    learned.update(plant.snapshot())
    polled = learned.traffic()
    assert polled is not None and polled.lengths is learned.outputs


def test_a_projection_uses_the_classes_of_its_traffic() -> None:
    """Two requests alike but for their prompts are projected to different ends."""
    learned = estimator()
    rng = np.random.default_rng(1)
    for prompt, mean in ((100, 1000.0), (3000, 20.0)):
        lengths = np.maximum(rng.gamma(4.0, mean / 4.0, 400), 1.0)
        learned.learn_requests([FinishedRequest(prompt, int(n)) for n in lengths])
    traffic = learned.traffic()
    assert traffic is not None
    ends = []
    for prompt in (100, 3000):
        rows = tuple(RequestState(0.0, prompt, prompt, 5) for _ in range(10))
        state = EngineState(0.0, 10, 0, 10.0 * prompt, rows)
        ends.append(project(state, traffic, shape(), 0.03, 3.0).batch_mean[-1])
    assert ends[0] > ends[1] + 8.0
