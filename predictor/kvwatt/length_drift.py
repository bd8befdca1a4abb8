"""Has the distribution changed? The newest values against those before them.

Kolmogorov-Smirnov distance of a recent and a longer, earlier window, in units of sqrt(1/n + 1/m). The
test is repeated with every few values, so the pointwise tables do not apply: the threshold was set by
simulation without drift (one false alarm in twenty over 10,000 values; tests/model/test_length_drift.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

THRESHOLD = 2.3
_EVERY = 10


class DriftDetector:
    """`distance` above `threshold` means drift; it ends once the older window holds the new values too.

    Feed probability integral transforms under the current model (uniform when it is right), so that a
    change in the mix of known classes is not taken for a change of their lengths.
    """

    def __init__(
        self, recent_values: int = 200, earlier_values: int = 1000, threshold: float = THRESHOLD
    ) -> None:
        if not 20 <= recent_values <= earlier_values:
            raise ValueError(
                f"recent_values must be 20 or more and at most earlier_values = {earlier_values}, "
                f"got {recent_values}"
            )
        self.threshold = threshold
        self._recent_size, self._size = recent_values, recent_values + earlier_values
        self._values: deque[float] = deque(maxlen=self._size)
        self._unseen = 0
        self._distance = 0.0

    @property
    def distance(self) -> float:
        """Scaled distance; 0 until both windows are at least the recent one's size."""
        return self._distance

    @property
    def drifted(self) -> bool:
        return self._distance > self.threshold

    def update(self, values: Iterable[float]) -> None:
        """Add values, oldest first; the distance is taken anew every tenth."""
        for value in values:
            self._values.append(value)
            self._unseen += 1
            if self._unseen >= _EVERY:
                self._unseen = 0
                self._measure()

    def _measure(self) -> None:
        values = np.array(self._values)
        earlier, recent = np.sort(values[: -self._recent_size]), np.sort(values[-self._recent_size :])
        if len(earlier) < self._recent_size:
            return
        places = np.concatenate((earlier, recent))
        below_earlier = np.searchsorted(earlier, places, side="right") / len(earlier)
        below_recent = np.searchsorted(recent, places, side="right") / len(recent)
        distance = float(np.abs(below_earlier - below_recent).max())
        self._distance = distance / float(np.sqrt(1.0 / len(earlier) + 1.0 / len(recent)))
