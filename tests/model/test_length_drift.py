"""The drift detector: quiet without drift, awake with it."""

from __future__ import annotations

import numpy as np
import pytest

from kvwatt.length_classes import ClassLengths, FinishedRequest
from kvwatt.length_drift import DriftDetector


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Without drift hardly any of fifteen streams of 10,000 values ever alarms (one in twenty expected)."""
    alarms = 0
    for seed in range(15):
        detector = DriftDetector()
        values = np.random.default_rng(seed).random(10_000)
        alarms += any(_drifts(detector, values))
    assert alarms <= 3


def _drifts(detector: DriftDetector, values: np.ndarray) -> list[bool]:
    seen = []
    for part in np.array_split(values, len(values) // 50):
        detector.update(part.tolist())
        seen.append(detector.drifted)
    return seen


def test_a_change_is_told_within_the_recent_window_and_forgotten_when_it_is_the_new_normal() -> None:
    """Values that move by a fifth of their range are noticed; later they are what is usual."""
    rng = np.random.default_rng(1)
    detector = DriftDetector()
    assert not any(_drifts(detector, rng.random(2000)))
    assert any(_drifts(detector, 0.8 * rng.random(200)))
    assert not _drifts(detector, 0.8 * rng.random(3000))[-1]


def test_another_mix_of_known_classes_is_not_drift_but_other_lengths_are() -> None:
    """The model feeds what it did not expect of a request's own class."""
    rng = np.random.default_rng(2)

    def batch(share_long: float, stretch: float, count: int) -> list[FinishedRequest]:
        long = rng.random(count) < share_long
        lengths = np.maximum(rng.gamma(4.0, np.where(long, 100.0, 10.0) * stretch), 1.0)
        return [FinishedRequest(2000 if kind else 100, int(n)) for kind, n in zip(long, lengths, strict=True)]

    model = ClassLengths()
    for _ in range(60):
        model.update(batch(0.5, 1.0, 50))
    for _ in range(8):
        model.update(batch(0.9, 1.0, 50))
    assert not model.drift.drifted
    for _ in range(4):
        model.update(batch(0.9, 1.6, 50))
    assert model.drift.drifted


def test_windows_out_of_order_are_refused() -> None:
    """The recent window is the smaller one."""
    with pytest.raises(ValueError, match="recent_values"):
        DriftDetector(recent_values=500, earlier_values=100)
