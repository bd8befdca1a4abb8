"""Plans as they are kept to be shown: what each came to, and the newest that began something."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from kvwatt.pool import ActionKind, PoolPlan
from kvwattd.api.schemas import PlanState
from kvwattd.instances.scaler import Refusal

log = logging.getLogger(__name__)

CHANGES_KEPT = 256
_UP = frozenset({ActionKind.START, ActionKind.WAKE, ActionKind.UNDRAIN})


@dataclass(frozen=True, slots=True)
class RecordedPlan:
    """A plan, what it came to, and whether it was carried out or only told of."""

    plan: PoolPlan
    state: PlanState
    applied: bool
    refused: tuple[Refusal, ...] = ()


class PlanRecord:
    """Feed it every plan."""

    def __init__(self) -> None:
        self.newest: RecordedPlan | None = None
        self.changes: deque[RecordedPlan] = deque(maxlen=CHANGES_KEPT)
        self.totals: Counter[PlanState] = Counter()

    def add(
        self, plan: PoolPlan, manual: bool, blind: bool, applied: bool, refused: Sequence[Refusal] = ()
    ) -> None:
        """Keep it. In shadow mode a plan that repeats the last one's actions is no news."""
        recorded = RecordedPlan(plan, state_of(plan, manual, blind), applied, tuple(refused))
        self.totals[recorded.state] += 1
        news = self.newest is None or _told(recorded) != _told(self.newest)
        self.newest = recorded
        if plan.actions and news:
            self.changes.append(recorded)
            for action in plan.actions:
                would = "" if applied else "would "
                log.info("pool: %s%s %s: %s", would, action.action, action.member, action.reason)
            for refusal in recorded.refused:
                log.warning(
                    "pool: %s %s not begun: %s", refusal.action.action, refusal.action.member, refusal.reason
                )


def state_of(plan: PoolPlan, manual: bool, blind: bool) -> PlanState:
    """In one word."""
    if manual:
        return "manual"
    if any(action.action in _UP for action in plan.actions):
        return "up"
    if plan.actions:
        return "down"
    return "blind" if blind else "hold"


def _told(recorded: RecordedPlan) -> object:
    actions = tuple((a.member, a.action) for a in recorded.plan.actions)
    return actions, recorded.applied, tuple((r.action.member, r.reason) for r in recorded.refused)
