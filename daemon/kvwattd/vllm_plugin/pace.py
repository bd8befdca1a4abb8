"""What a prompt token costs in units of a decoded one, learned from the times of steps.

    step = T0 + c x (prompt tokens of the step)

by least squares over groups of steps, so that asynchronous scheduling, which shifts a step's time to the
next, does no harm. Old groups fade. Times are passed in.
"""

from __future__ import annotations

GROUP_STEPS = 8
PAUSE_S = 1.0  # a longer gap is no step: nobody was there, or the process was stopped
FADE = 1.0 - 1.0 / 64.0  # per group
FEWEST_GROUPS = 8.0
DEFAULT_RATIO = 0.06
RATIO_BOUNDS = (0.005, 0.5)


class Pace:
    """Feed `step` with each step; read `ratio`."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._sums = [0.0] * 6  # groups, time, prompt tokens, tokens squared, time x tokens, batch
        self._group = [0.0, 0.0, 0.0, 0.0]  # steps, time, prompt tokens, batch
        self._before = (0, 0)

    def step(self, now_s: float, batch: int, prompt_tokens: int) -> None:
        """A step with this batch, of which so many tokens are prompts', starts now."""
        last_s, self._last_s = self._last_s, now_s
        before, self._before = self._before, (batch, prompt_tokens)
        if last_s is None or not 0.0 < now_s - last_s < PAUSE_S or not before[0]:
            self._group = [0.0, 0.0, 0.0, 0.0]
            return
        group = self._group
        group[0] += 1.0
        group[1] += now_s - last_s
        group[2] += before[1]
        group[3] += before[0]
        if group[0] >= GROUP_STEPS:
            self._close(*(value / group[0] for value in group[1:]))
            self._group = [0.0, 0.0, 0.0, 0.0]

    def _close(self, time_s: float, tokens: float, batch: float) -> None:
        added = (1.0, time_s, tokens, tokens * tokens, time_s * tokens, batch)
        self._sums = [FADE * old + new for old, new in zip(self._sums, added, strict=True)]

    @property
    def ratio(self) -> float:
        """Time of one prompt token over that of one decoded token (step time / batch)."""
        weight, time_s, tokens, squared, product, batch = self._sums
        if weight < FEWEST_GROUPS:
            return DEFAULT_RATIO
        spread = squared - tokens * tokens / weight
        slope = (product - time_s * tokens / weight) / spread if spread > 1.0 else 0.0
        base_s = (time_s - slope * tokens) / weight
        if slope <= 0.0 or base_s <= 0.0:
            return DEFAULT_RATIO
        low, high = RATIO_BOUNDS
        return min(max(slope * (batch / weight) / base_s, low), high)


def horizon(tokens: int, ratio: float, least: int, most: int) -> int:
    """Steps that a request of so many tokens should live before it may be preempted.

    Preempted after h steps it has made h tokens and has to compute tokens + h anew: even at
    h = tokens x ratio / (1 - ratio). Twice that is asked for.
    """
    return int(min(max(2.0 * tokens * ratio / (1.0 - ratio), least), most))
