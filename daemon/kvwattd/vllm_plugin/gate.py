"""How many waiting requests may start in this step. No vLLM import; times are passed in.

One is held where it pays (`kvwatt.scheduling.worth`): where the chance that the cache overflows and preempts
it, times the steps that a preemption is worth, is more than the steps until somebody leaves or it overflows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from kvwattd.vllm_plugin.ghost import Ghost
from kvwattd.vllm_plugin.inside import SHORTEST_STEPS, Inside, Newcomer, Sequenced
from kvwattd.vllm_plugin.lengths import Lengths
from kvwattd.vllm_plugin.promises import breaks
from kvwattd.vllm_plugin.told import Promises, Told

LOOK = 32  # waiting requests looked at in one step; more rarely start in one
HELD_AGAIN = 4  # steps for which a verdict stands while nobody leaves or comes


@dataclass(frozen=True, slots=True)
class View:
    """The engine before a step. `pool_blocks`: all of the cache's, `free_blocks`: held by nobody inside."""

    running: Sequence[Sequenced]
    waiting: Iterable[Sequenced]
    pool_blocks: int
    free_blocks: int
    block_size: int
    by_priority: bool = False


@dataclass(slots=True)
class _Verdict:
    """The last one that held somebody: it stands while the batch is the same, for a few steps."""

    who: str = ""
    batch: int = 0
    why: str = ""
    left: int = 0


@dataclass(slots=True)
class Totals:
    """Since the start. `steps`: in which somebody was held, by reason."""

    steps: dict[str, int] = field(default_factory=lambda: {"overflow": 0, "budget": 0, "tbt": 0, "e2e": 0})


class Gate:
    """Feed `lengths`; ask `admissible`. `fixed_steps`: the horizon, whatever the request."""

    def __init__(self, fixed_steps: int | None = None) -> None:
        if fixed_steps is not None and fixed_steps < 1:
            raise ValueError(f"horizon = {fixed_steps} steps: 1 or more is accepted")
        self._fixed = fixed_steps
        self._verdict = _Verdict()
        self.lengths, self.ghost, self.totals = Lengths(), Ghost(), Totals()
        self.last_horizon = fixed_steps or SHORTEST_STEPS

    def admissible(self, view: View, told: Told | None, wall_s: float) -> int:
        """Length of the longest prefix of the first LOOK waiting that may start now."""
        ahead = list(islice(view.waiting, LOOK))
        if not ahead or not view.running:
            self.ghost.released()
            return len(ahead)
        if self._stands(ahead[0], view):
            self._hold(ahead[0], self._verdict.why, view)
            return 0
        inside = Inside(
            view.running, self.lengths, told, view.block_size, view.pool_blocks - view.free_blocks
        )
        for count, request in enumerate(ahead):
            new = inside.newcomer(request)
            why = self._why_held(new, inside, view, (told, wall_s))
            if why is not None:
                self._verdict = _Verdict(request.request_id, len(view.running), why, HELD_AGAIN)
                self._hold(request, why, view)
                return count
            inside.enter(new)
        self.ghost.released()
        return len(ahead)

    def _stands(self, request: Sequenced, view: View) -> bool:
        verdict = self._verdict
        verdict.left -= 1
        return verdict.left > 0 and verdict.batch == len(view.running) and verdict.who == request.request_id

    def _hold(self, request: Sequenced, why: str, view: View) -> None:
        self.totals.steps[why] += 1
        self.ghost.held(request.request_id, request.num_tokens, view.free_blocks, view.block_size)

    def _why_held(
        self, new: Newcomer, inside: Inside, view: View, at: tuple[Told | None, float]
    ) -> str | None:
        told, wall_s = at
        room = view.pool_blocks
        if told is not None:
            if told.max_seqs is not None and len(inside.seats) >= told.max_seqs:
                return "budget"
            if told.budget_blocks is not None:
                room = min(room, told.budget_blocks)
                if inside.blocks(new) > room:
                    return "budget"
            if told.promises is not None:
                return self._promises_hold(new, inside, room, (told.promises, wall_s))
        steps = self.last_horizon = new.horizon_steps if self._fixed is None else self._fixed
        return "overflow" if inside.holding_pays(new, steps, room, view.by_priority) else None

    def _promises_hold(
        self, new: Newcomer, inside: Inside, room_blocks: int, at: tuple[Promises, float]
    ) -> str | None:
        """throttLL'eM's admission; KV to the end of everyone, as there."""
        promises, wall_s = at
        held, left = inside.expected(new)
        ages_s = [wall_s - arrival_s for _, arrival_s in inside.ranks]
        broken = breaks(promises, held[:-1], left[:-1], ages_s, (new.request.num_tokens, left[-1]))
        return broken or (None if inside.fits_to_the_end(new, room_blocks) else "overflow")
