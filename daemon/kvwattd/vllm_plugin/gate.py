"""How many waiting requests may start in this step. No vLLM import; times are passed in.

Who starts should live some steps before the cache overflows: with r the steps that each one inside still
runs, and H the horizon, PROJ over min(r, H) must fit. H = 1 is vLLM, which starts whoever fits now and
preempts him when he does not; H = infinity is the cap ladder with whole reservations, which leaves a
quarter of the cache empty. At H of a few dozen steps most preemptions are gone and the batch is as large.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from kvwattd.vllm_plugin.ghost import Ghost
from kvwattd.vllm_plugin.inside import Inside, Newcomer
from kvwattd.vllm_plugin.lengths import Lengths
from kvwattd.vllm_plugin.promises import breaks
from kvwattd.vllm_plugin.told import Told

LOOK = 32  # waiting requests looked at in one step; more rarely start in one
LEAST_STEPS, MOST_STEPS = 32, 256
KEPT_EMPTY = 0.125  # of a request's mean memory: so much to grow into before an overflow
HELD_AGAIN = 4  # steps for which a verdict stands while nobody leaves or comes


class Sequenced(Protocol):
    """What is read of a request."""

    request_id: str
    num_tokens: int
    num_output_tokens: int
    num_computed_tokens: int
    max_tokens: int
    arrival_time: float
    priority: int


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
        self.last_horizon = fixed_steps or LEAST_STEPS

    def horizon_steps(self, tokens: int, left: int) -> int:
        """How long a request of so many tokens, with so many to come, should live.

        Over H steps about H / (its mean memory) of the cache stays empty, so that a fixed H would empty much
        of it beside short answers, and shrink beside long ones, which then start again and again. A longer
        H avoids more preemptions for a smaller batch (docs/scheduling-live.md).
        """
        if self._fixed is not None:
            return self._fixed
        return min(max(int(KEPT_EMPTY * (tokens + left / 2)), LEAST_STEPS), MOST_STEPS)

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
            why = self._why_held(request, new, inside, view, (told, wall_s))
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
        self, request: Sequenced, new: Newcomer, inside: Inside, view: View, at: tuple[Told | None, float]
    ) -> str | None:
        told, wall_s = at
        room = view.pool_blocks * view.block_size
        steps = self.last_horizon = self.horizon_steps(request.num_tokens, new.left)
        if told is not None:
            if told.max_seqs is not None and len(inside.held) >= told.max_seqs:
                return "budget"
            if told.budget_blocks is not None:
                room = min(room, told.budget_blocks * view.block_size)
                if inside.total + new.held > room:
                    return "budget"
            if told.promises is not None:
                ages_s = [wall_s - arrival_s for _, arrival_s in inside.ranks]
                broken = breaks(
                    told.promises, inside.held, inside.left, ages_s, (request.num_tokens, new.left)
                )
                if broken is not None:
                    return broken
                steps = max(inside.left)  # KV to the end of everyone, as there
        fits = inside.fits(new, steps, room, by_priority=view.by_priority)
        return None if fits else "overflow"
