"""Traffic estimates fed with single finished requests."""

from __future__ import annotations

import numpy as np
from worlds import card, shape

from kvwatt.length_classes import ClassLengths, FinishedRequest
from kvwatt.lengths import LengthModel
from kvwatt.projection import project
from kvwatt.state import EngineState, RequestState
from kvwatt.traffic import LEAST_BY_CLASS, TrafficEstimator
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.workload import generate


def estimator() -> TrafficEstimator:
    """Two pages of a plant under load."""
    plant = VirtualPlant(card(), shape(), generate(1.5, 30.0, 4))
    learned = TrafficEstimator(LengthModel(), LengthModel())
    for second in (10.0, 20.0):
        plant.advance(second)
        learned.update(plant.snapshot())
    return learned


def test_lengths_by_class_take_over_once_there_are_enough_of_them() -> None:
    """Before that, and where only pages are polled, the histogram's lengths serve."""
    learned = estimator()
    few = [FinishedRequest(100, 50)] * (LEAST_BY_CLASS - 1)
    learned.learn_requests(few)
    before = learned.traffic()
    assert before is not None and before.lengths is learned.outputs
    learned.learn_requests([FinishedRequest(100, 50)])
    after = learned.traffic()
    assert after is not None and isinstance(after.lengths, ClassLengths)


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
