"""throttLL'eM's clock (HPCA 2025, arXiv 2408.05235): the lowest at which the projected batch keeps the SLOs.

A scoreboard holds each request's prompt and (predicted) length. From it, per iteration to come, follow the
batch B_j and the KV cache; an iteration takes T_j(f) = 1 / IPS(B_j, KV_j, f). A clock is feasible when
every T_j(f) is within the TBT limit and every request is projected to end before its E2E deadline. The
lowest feasible clock is taken; once a request is lost even at the top clock, the top clock.

As in the source: TTFT is not considered, and neither are requests that have not arrived. In the source's
favour: its IPS model (gradient boosting, MAPE 2.8-5.8 %) is replaced by the plant's own law. Ours: how much
predicted lengths are inflated (by their p95 error), which the summaries at hand do not say. Not built: its
admission control; the engine admits by KV cache, which is the check that can bind on these plants.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvwatt_sim.replay import laws
from kvwatt_sim.replay.plant import MAX_TOKENS, VirtualPlant
from kvwatt_sim.replay.scenario import Case

Floats = npt.NDArray[np.float64]
Z95 = 1.96


@dataclass
class ThrottLLeM:
    """`p95_error`: of predicted lengths, relative; 0: the true lengths are known."""

    case: Case
    p95_error: float = 0.0
    period_s: float = 0.2
    _guesses: dict[float, int] = field(default_factory=dict, init=False)
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(95), init=False)

    def target(self, now_s: float, plant: VirtualPlant) -> int:
        clocks = self.case.clocks_mhz
        requests = plant.request_states()
        if not requests:
            return clocks[0]
        lengths = [
            self._guess(r.arrival_s, true)
            for r, true in zip(requests, plant.true_output_tokens(), strict=True)
        ]
        done = np.array([r.output_tokens for r in requests])
        guessed = np.array(lengths)
        # A request that outlives its prediction is taken to go on to its limit.
        left = np.where(guessed > done, guessed - done, np.maximum(MAX_TOKENS - done, 1))
        kv = np.array([r.prompt_tokens for r in requests]) + done
        arrived = np.array([r.arrival_s for r in requests])
        feasible = self.feasible(now_s, left, kv, arrived)
        return clocks[int(np.argmax(feasible))] if feasible.any() else clocks[-1]

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
