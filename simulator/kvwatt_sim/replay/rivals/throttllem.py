"""throttLL'eM's clock (HPCA 2025, arXiv 2408.05235): the lowest at which the projected batch keeps the SLOs.

A scoreboard holds each request's prompt and (predicted) length. From it, per iteration to come, follow the
batch B_j and the KV cache; an iteration takes T_j(f) = 1 / IPS(B_j, KV_j, f). A clock is feasible when
every T_j(f) is within the TBT limit and every request is projected to end before its E2E deadline. The
lowest feasible clock is taken; once a request is lost even at the top clock, the top clock.

Admission: a request that arrives is put on the scoreboard virtually. If then, at the top clock even, the KV
cache would overflow, a step would break TBT, or a request would end after its deadline, it waits, and first
come first served those behind it; it is looked at again at every look.

As in the source: TTFT is not considered, and neither are requests that have not arrived. In the source's
favour: its IPS model (gradient boosting, MAPE 2.8-5.8 %) is replaced by the plant's own law. Ours, where the
summaries at hand are silent: how much predicted lengths are inflated (by their p95 error); whose deadline is
lost without the new request already holds nobody back, and a request whose own deadline nothing can save any
more is admitted, since else one lost request would close the engine; an empty engine admits anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvwatt.scheduling.proj import peak_blocks
from kvwatt.state import RequestState
from kvwatt_sim.replay import laws
from kvwatt_sim.replay.plant import MAX_TOKENS, VirtualPlant
from kvwatt_sim.replay.scenario import Case

Floats = npt.NDArray[np.float64]
Z95 = 1.96
LOOK_S = 0.05  # between two looks at who waits
DECIDE_S = 0.2  # between two clocks, where nobody is admitted in between
_NOBODY = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))


@dataclass(frozen=True, slots=True)
class Board:
    """The scoreboard, one entry per admitted request: tokens left, KV tokens held, arrival."""

    left: npt.NDArray[np.int64]
    kv: npt.NDArray[np.int64]
    arrived: Floats

    def with_one(self, left: int, kv: int, arrived: float) -> Board:
        """One more entry, the last."""
        return Board(np.append(self.left, left), np.append(self.kv, kv), np.append(self.arrived, arrived))


@dataclass
class ThrottLLeM:
    """`p95_error`: of predicted lengths, relative; 0: the true lengths are known."""

    case: Case
    p95_error: float = 0.0
    period_s: float = LOOK_S
    _guesses: dict[float, int] = field(default_factory=dict, init=False)
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(95), init=False)
    _decided: tuple[float, int] | None = field(default=None, init=False)

    def target(self, now_s: float, plant: VirtualPlant) -> int:
        plant.hold_arrivals()
        admitted = self._admit(now_s, plant) if plant.waiting else 0
        last = self._decided
        if last is None or admitted or now_s - last[0] >= DECIDE_S - 1e-9:
            self._decided = last = (now_s, self._clock(now_s, plant))
        return last[1]

    def _clock(self, now_s: float, plant: VirtualPlant) -> int:
        clocks = self.case.clocks_mhz
        board, _ = self._boards(plant)
        if not len(board.left):
            return clocks[0]
        feasible = self.feasible(now_s, board.left, board.kv, board.arrived)
        return clocks[int(np.argmax(feasible))] if feasible.any() else clocks[-1]

    def _admit(self, now_s: float, plant: VirtualPlant) -> int:
        """Release those in the queue that break nothing, in turn; how many."""
        board, waiting = self._boards(plant)
        released = 0
        for place, entry in waiting:
            more = board.with_one(*entry)
            if not self.admits(now_s, board, more):
                break
            plant.release(place)
            board, released = more, released + 1
        return released

    def _boards(self, plant: VirtualPlant) -> tuple[Board, list[tuple[int, tuple[int, int, float]]]]:
        """Those admitted, and those held with their places, in order."""
        entries = [
            self._entry(request, true)
            for request, true in zip(plant.request_states(), plant.true_output_tokens(), strict=True)
        ]
        queue = plant.queue()
        held = [(p, e) for p, e in zip(queue, entries[plant.running :], strict=True) if plant.held(p)]
        inside = entries[: plant.running]
        inside += [e for p, e in zip(queue, entries[plant.running :], strict=True) if not plant.held(p)]
        left, kv, arrived = (np.array(column) for column in zip(*inside, strict=True)) if inside else _NOBODY
        return Board(left, kv, arrived), held

    def _entry(self, request: RequestState, true_tokens: int) -> tuple[int, int, float]:
        guess, done = self._guess(request.arrival_s, true_tokens), request.output_tokens
        # A request that outlives its prediction is taken to go on to its limit.
        left = guess - done if guess > done else max(MAX_TOKENS - done, 1)
        return left, request.prompt_tokens + done, request.arrival_s

    def admits(self, now_s: float, board: Board, more: Board) -> bool:
        """Whether the last of `more`, beside those of `board`, breaks no promise at the top clock."""
        if not len(board.left):
            return True
        shape, slo = self.case.shape, self.case.promises.slo
        now, kv, left = [0] * len(more.left), more.kv.tolist(), more.left.tolist()
        if peak_blocks(now, kv, left, shape.block_size, max(left) + 1).blocks > shape.num_blocks - 1:
            return False
        step_s, ends_s = self._at_top(more)
        if slo.tbt is not None and not (step_s <= slo.tbt.limit_s).all():
            return False
        if slo.e2e is None:
            return True
        deadlines_s = more.arrived - now_s + slo.e2e.limit_s
        before_s = np.append(self._at_top(board)[1], self._at_top(_alone(more))[1])
        return bool((ends_s <= np.where(before_s <= deadlines_s, deadlines_s, np.inf)).all())

    def _at_top(self, board: Board) -> tuple[Floats, Floats]:
        """Longest step, and seconds until each entry ends, in the board's order, at the top clock."""
        order = np.argsort(board.left, kind="stable")
        top = np.array([[float(self.case.clocks_mhz[-1])]])
        step_s, ends_s = projected(self.case, top, board.left[order], board.kv[order])
        sorted_back = np.empty(len(order))
        sorted_back[order] = ends_s[0]
        return step_s[0], sorted_back

    def feasible(
        self, now_s: float, left: npt.NDArray[np.int64], kv: npt.NDArray[np.int64], arrived: Floats
    ) -> npt.NDArray[np.bool_]:
        """(clocks,): whether requests with so many tokens `left` and `kv` in the cache keep TBT and E2E."""
        clocks = np.array(self.case.clocks_mhz, dtype=np.float64)[:, None]
        order = np.argsort(left, kind="stable")
        step_s, ends_s = projected(self.case, clocks, left[order], kv[order])
        slo = self.case.promises.slo
        kept = np.ones(len(clocks), dtype=np.bool_)
        if slo.tbt is not None:
            kept &= (step_s <= slo.tbt.limit_s).all(axis=1)
        if slo.e2e is not None:
            kept &= (now_s + ends_s <= arrived[order] + slo.e2e.limit_s).all(axis=1)
        return kept

    def _guess(self, arrival_s: float, true_tokens: int) -> int:
        if self.p95_error == 0.0:
            return true_tokens
        if arrival_s not in self._guesses:
            error = self._rng.normal(0.0, self.p95_error / Z95)
            self._guesses[arrival_s] = max(round(true_tokens * (1.0 + error) * (1.0 + self.p95_error)), 1)
        return self._guesses[arrival_s]


def _alone(board: Board) -> Board:
    """The last entry by itself."""
    return Board(board.left[-1:], board.kv[-1:], board.arrived[-1:])


def projected(
    case: Case, clocks: Floats, left: npt.NDArray[np.int64], kv: npt.NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """The scoreboard: `left` ascending, one entry per request. Returns, both (clocks, requests), the step
    time just before each request ends, the longest since the end before it, and when it ends from now.

    Between two ends the batch is constant and its KV cache grows by one token per request and step, so
    the steps in between are summed in closed form."""
    n = len(left)
    batch = np.arange(n, 0, -1).astype(np.float64)  # running until the i-th ends
    steps = np.diff(left, prepend=0).astype(np.float64)
    # KV of those who still run, at the start of the i-th stretch.
    held = np.cumsum(kv[::-1])[::-1] + batch * (left - steps)
    none = np.zeros(1)
    empty = laws.work(case.card, clocks, batch, none, none, none).time_s
    per_token = laws.kv_s_per_token(case.card, clocks)
    at_end = empty + per_token * (held + batch * steps)
    tokens_read = steps * held + batch * steps * (steps + 1.0) / 2.0
    return at_end, np.cumsum(steps * empty + per_token * tokens_read, axis=1)
