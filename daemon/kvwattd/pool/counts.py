"""What became of scale actions: counted by action and outcome, and how long starts took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvwatt.pool import ActionKind, MemberStatus
from kvwattd.instances.scaler import Refusal, ScaleEvent

BOUNDS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
RECENT = 8

_DRAINS = frozenset({ActionKind.DRAIN_TO_SLEEP, ActionKind.DRAIN_TO_STOP})
_AT_REST = frozenset({MemberStatus.STOPPED, MemberStatus.ASLEEP})


@dataclass
class StartTimes:
    """How long one kind took to start, or to wake up."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds
        self.recent_s.append(seconds)

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def expected_s(self) -> float | None:
        """The longest of the recent ones: capacity that comes late is worse than early."""
        return max(self.recent_s, default=None)

    def cumulative(self) -> tuple[int, ...]:
        """Starts that took at most each of BOUNDS_S."""
        return tuple(sum(self.counts[: place + 1]) for place in range(len(BOUNDS_S)))


class ScaleCounts:
    """Feed it orders, refusals and the scaler's events."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self._kinds = kinds
        self._ordered: dict[str, ActionKind] = {}
        self._begun: dict[str, tuple[ActionKind, float]] = {}
        self.events: Counter[tuple[ActionKind, str]] = Counter()
        self.starts: dict[tuple[str, ActionKind], StartTimes] = {}

    def on_order(self, member: str, action: ActionKind) -> None:
        """Something was asked of the scaler."""
        self._ordered[member] = action

    def on_refusal(self, refusal: Refusal) -> None:
        """The scaler did not take it."""
        self._ordered.pop(refusal.action.member, None)
        self.events[refusal.action.action, "refused"] += 1

    def on_event(self, event: ScaleEvent) -> None:
        """A member changed its status."""
        if event.status is MemberStatus.STARTING:
            self._begin(event, ActionKind.WAKE if event.was is MemberStatus.ASLEEP else ActionKind.START)
        elif event.status is MemberStatus.DRAINING:
            ordered = self._ordered.get(event.member)
            self._begin(event, ordered if ordered in _DRAINS and ordered else ActionKind.DRAIN_TO_STOP)
        else:
            self._end(event)

    def _begin(self, event: ScaleEvent, action: ActionKind) -> None:
        self._begun[event.member] = (action, event.at_s)
        self.events[action, "begun"] += 1

    def _end(self, event: ScaleEvent) -> None:
        begun = self._begun.pop(event.member, None)
        if begun is None:
            return
        action, began_s = begun
        if event.status is MemberStatus.FAILED:
            self.events[action, "failed"] += 1
        elif event.status is MemberStatus.READY:
            self.events[action, "done" if action not in _DRAINS else "undone"] += 1
            if action not in _DRAINS:
                self._took(event.member, action, event.at_s - began_s)
        elif event.status in _AT_REST:
            self.events[action, "done" if action in _DRAINS else "cancelled"] += 1

    def _took(self, member: str, action: ActionKind, seconds: float) -> None:
        kind = self._kinds[member]
        self.starts.setdefault((kind, action), StartTimes()).observe(max(seconds, 0.0))

    def expected_s(self, kind: str, action: ActionKind) -> float | None:
        """How long this takes, by those seen so far."""
        seen = self.starts.get((kind, action))
        return seen.expected_s if seen is not None else None
