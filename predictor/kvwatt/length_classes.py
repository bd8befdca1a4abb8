"""Output lengths by class, learned online from single finished requests: no prompt text, no other model.

What is known before a request has said anything: its prompt length, its max_tokens, perhaps a hint.
What is learned: a survival curve per class (Kaplan-Meier, so that answers cut off at max_tokens bias
nothing), recent requests counting more (length_experts.py), thin classes leaning on the pooled curve
(length_tree.py), hints as far as they have been true (hints.py), and whether all that still holds
(length_drift.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kvwatt.hints import HintTrust
from kvwatt.length_curves import CELLS, EDGES, LONGEST_TOKENS, Curves, Floats, Ints, curves_of, hazards_of
from kvwatt.length_drift import DriftDetector
from kvwatt.length_experts import MEMORIES, Experts
from kvwatt.length_memory import FinishedRequest, Memory, Requests, limits
from kvwatt.length_recent import RecentOptions
from kvwatt.length_tree import Classes, TreeOptions, fit_classes

__all__ = ["ClassLengths", "FinishedRequest", "Requests"]

_HINTS_PER_DOUBLING = 8
_CORRECT_REQUESTS = 32


class Pooled(Protocol):
    """Lengths of all requests together, as `lengths.LengthModel` has them from histograms."""

    @property
    def weight_requests(self) -> float: ...
    def survival(self, tokens: Floats) -> Floats: ...


class ClassLengths:
    """Reads like `lengths.LengthModel` for a request of unknown class, and by class for known ones.

    Classes lean on `pooled`, which may know of requests that finished before single ones were told. Where
    nothing is known at all, everything runs for ever. `refit_requests`: classes and curves are fitted anew
    after so many more, and rarer as there are more to fit.
    """

    def __init__(
        self,
        memory_requests: float = 10_000.0,
        options: TreeOptions | None = None,
        refit_requests: int = 64,
        recent: RecentOptions | None = None,
        pooled: Pooled | None = None,
    ) -> None:
        if not (math.isfinite(memory_requests) and memory_requests >= 1):
            raise ValueError(f"memory_requests must be finite and >= 1, got {memory_requests}")
        self.hints = HintTrust()
        self.drift = DriftDetector()
        self._options = options or TreeOptions()
        memories = MEMORIES if recent is None else (recent,)
        self._experts = Experts([one and one.within(memory_requests) for one in memories])
        self._memory_requests = memory_requests
        self._refit_requests = refit_requests
        self._pool = pooled
        self._held = Memory(int(2 * memory_requests))
        self._new, self._uncorrected = 0, 0
        self._classes: Classes | None = None
        self._curves = curves_of(np.zeros((1, CELLS)))
        self._hinted: dict[tuple[int, int], int] = {}

    @property
    def finished(self) -> int:
        """Requests held in memory."""
        return self._held.size

    @property
    def classes(self) -> Classes | None:
        """The classes as last fitted, None before the first finished request."""
        return self._classes

    @property
    def mean_tokens(self) -> float:
        """E[L] over all classes; inf before anything is known."""
        return math.inf if self._classes is None else float(self._curves.tail_rows[self._pooled, 0])

    @property
    def _pooled(self) -> int:
        return 0 if self._classes is None else self._classes.pooled

    @property
    def known(self) -> bool:
        """Whether anything is known of lengths."""
        return self._classes is not None

    def update(self, finished: Sequence[FinishedRequest], running: Requests | None = None) -> None:
        """Learn from requests that finished since the last update, in the order of their ends, and from those
        that run now, None where they are not known."""
        if running is not None:
            self._held.run(running)
        useful = [r for r in finished if r.output_tokens > 0]
        if useful:
            self._watch([r for r in useful if r.ended])
            self._held.extend(useful)
        self._new += len(useful)
        self._uncorrected += len(useful)
        due = min(max(self._refit_requests, self.finished // 50), self.finished // 4)
        if self._classes is None or (useful and self._new >= due):
            self.refit()
        elif self._uncorrected >= _CORRECT_REQUESTS:
            self._correct()

    def refit(self) -> None:
        """Fit classes and curves to what is held now."""
        pooled = _ended_and_reached(self._pool)
        if not self.finished and pooled is None:
            return
        self._new = 0
        self._classes = fit_classes(self._held.sample(self._memory_requests), self._options, pooled)
        self._correct()

    def _correct(self) -> None:
        """Classes stay as they are; the newest requests move their curves."""
        if self._classes is None:
            return
        self._uncorrected = 0
        self._curves = self._experts.moved(self._classes, self._held)
        self._hinted = {}

    def _watch(self, ended: Sequence[FinishedRequest]) -> None:
        """Feed hints' truth, memories and the drift detector, before these requests change the model."""
        for request in ended:
            hint = request.hint_tokens
            if hint is not None and 0.0 < hint < math.inf:  # callers may say anything
                self.hints.update(hint, request.output_tokens)
        if self._classes is not None and ended:
            prompt = np.array([r.prompt_tokens for r in ended], dtype=np.float64)
            tokens = np.array([r.output_tokens for r in ended], dtype=np.float64)
            row = self._classes.classify(prompt, limits(ended))
            self._experts.judge(row, tokens)
            alive = self._curves.survival(row, tokens) + self._curves.survival(row, tokens - 1.0)
            self.drift.update((1.0 - alive / 2).tolist())

    def rows(self, requests: Requests) -> Ints:
        """The row of `curves` that holds for each request."""
        if self._classes is None:
            return np.zeros(len(requests.prompt), dtype=np.intp)
        row = self._classes.classify(requests.prompt, requests.limit)
        given = requests.hint > 0.0
        if len(given) and given.item(given.argmax()):  # faster than any()
            hinted = np.flatnonzero(given & (requests.hint < math.inf))
            row[hinted] = self._hinted_rows(row[hinted], requests.hint[hinted])
        return row

    def _hinted_rows(self, row: Ints, hint_tokens: Floats) -> list[int]:
        """Rows for requests of a class with about these hints, made when first asked for."""
        steps = np.round(np.log2(np.clip(hint_tokens, 1.0, LONGEST_TOKENS)) * _HINTS_PER_DOUBLING)
        keys = list(zip(row.tolist(), steps.astype(int).tolist(), strict=True))
        missing = [key for key in dict.fromkeys(keys) if key not in self._hinted]
        if missing:
            self._hinted |= {key: self._curves.rows + i for i, key in enumerate(missing)}
            extra = curves_of(hazards_of(np.array([self._weighed(*key) for key in missing])))
            self._curves = Curves(
                np.concatenate([self._curves.survival_rows, extra.survival_rows]),
                np.concatenate([self._curves.tail_rows, extra.tail_rows]),
            )
        return [self._hinted[key] for key in keys]

    def _weighed(self, row: int, hint_step: int) -> Floats:
        """Survival of a class given a hint: its lengths weighed by the hint's likelihood under each."""
        survival = self._curves.survival_rows[row]
        likelihood = self.hints.likelihood(2.0 ** (hint_step / _HINTS_PER_DOUBLING))
        mass = (survival[:-1] - survival[1:]) * likelihood
        return np.append(np.cumsum(mass[::-1])[::-1], 0.0) / max(float(mass.sum()), 1e-300)

    def alive(self, requests: Requests, ahead: Floats) -> Floats:
        """P(request i still runs after ahead[i, k] more tokens), (n, k)."""
        row = self.rows(requests)
        return self._curves.alive(row, requests.produced, ahead, requests.limit)

    def alive_and_some(
        self, requests: Requests, ahead: Floats, who: Ints, more: Floats
    ) -> tuple[Floats, Floats]:
        """`alive` of all after `ahead` (m, n), and of those at `who` (k,) after `more` (k,), in about the
        time of one of them."""
        row = self.rows(requests)
        return self._curves.alive_and_some(row, requests.produced, ahead, requests.limit, who, more)

    def expected_remaining(self, requests: Requests) -> Floats:
        """Expected further tokens of each request; inf before anything is known."""
        if self._classes is None:
            return requests.limit - requests.produced
        row = self.rows(requests)
        return self._curves.residual_mean(row, requests.produced, requests.limit)

    def remaining_quantile(self, requests: Requests, q: float) -> Floats:
        """Further tokens that each request does not exceed with probability q."""
        if self._classes is None:
            return requests.limit - requests.produced
        row = self.rows(requests)
        return self._curves.residual_quantile(row, requests.produced, requests.limit, q)

    def survival(self, tokens: Floats | float) -> Floats:
        """S of a request about which nothing is known."""
        at = np.asarray(tokens, dtype=np.float64)
        return self._curves.survival(np.full(at.shape, self._pooled, dtype=np.intp), at)

    def equilibrium_survival(self, tokens: Floats | float) -> Floats:
        """P(a request met while running still runs after `tokens` more)."""
        ahead = np.asarray(tokens, dtype=np.float64)
        if self._classes is None:
            return np.ones(ahead.shape)
        pooled = self._classes.pooled
        edge = self._curves.tail_rows[pooled]
        return np.asarray(np.interp(ahead, EDGES, edge) / edge[0])


def _ended_and_reached(pooled: Pooled | None) -> tuple[Floats, Floats] | None:
    """Requests that ended in each cell and that came to it, None where none are known."""
    if pooled is None or pooled.weight_requests <= 0:
        return None
    alive = pooled.weight_requests * pooled.survival(EDGES)
    return alive[:-1] - alive[1:], alive[:-1]
