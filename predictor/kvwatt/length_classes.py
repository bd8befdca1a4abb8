"""Output lengths by class, learned online from single finished requests: no prompt text, no other model.

What is known before a request has said anything: its prompt length, its max_tokens, perhaps a hint.
What is learned: a survival curve per class (Kaplan-Meier, so that answers cut off at max_tokens bias
nothing), recent requests counting more, thin classes leaning on the pooled curve (length_tree.py), hints
as far as they have been true (hints.py), and whether all that still holds (length_drift.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.hints import HintTrust
from kvwatt.length_curves import CELLS, EDGES, LONGEST_TOKENS, Curves, Floats, Ints, curves_of, hazards_of
from kvwatt.length_drift import DriftDetector
from kvwatt.length_recent import RecentOptions, corrected
from kvwatt.length_tree import Classes, Sample, TreeOptions, fit_classes
from kvwatt.state import RequestState

_HINTS_PER_DOUBLING = 8
_CORRECT_REQUESTS = 32


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """`aborted`: it would have gone on, as one that max_tokens cut would have."""

    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    hint_tokens: float | None = None
    aborted: bool = False

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.output_tokens < 0:
            raise ValueError(
                f"token counts must be >= 0, got {self.prompt_tokens} in and {self.output_tokens} out"
            )

    @property
    def ended(self) -> bool:
        """It ended by itself: its length is known, not only a lower bound of it."""
        return not self.aborted and (self.max_tokens is None or self.output_tokens < self.max_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Columns of requests, each of length n. `limit` is max_tokens, inf where there is none."""

    prompt: Floats
    produced: Floats
    limit: Floats
    hint: Floats  # NaN where there is none
    index: Ints  # place in the list they come from

    @classmethod
    def of(cls, states: Sequence[RequestState]) -> Requests:
        limits = [math.inf if r.max_tokens is None else r.max_tokens for r in states]
        hints = [math.nan if r.hint_tokens is None else r.hint_tokens for r in states]
        return cls.known([r.prompt_tokens for r in states], [r.output_tokens for r in states], limits, hints)

    @classmethod
    def known(
        cls,
        prompt: npt.ArrayLike,
        produced: npt.ArrayLike,
        limit: npt.ArrayLike = math.inf,
        hint: npt.ArrayLike = math.nan,
    ) -> Requests:
        """From columns, which may be longer than one value or one value for all."""
        columns = [np.asarray(column, dtype=np.float64) for column in (prompt, produced, limit, hint)]
        size = columns[0].shape
        whole = [column if column.shape == size else np.broadcast_to(column, size) for column in columns]
        return cls(whole[0], whole[1], whole[2], whole[3], np.arange(size[0]))

    def select(self, rows: npt.NDArray[np.bool_] | Ints) -> Requests:
        """Those of a mask, or at these places."""
        return Requests(
            self.prompt[rows], self.produced[rows], self.limit[rows], self.hint[rows], self.index[rows]
        )


class ClassLengths:
    """Reads like `lengths.LengthModel` for a request of unknown class, and by class for known ones.

    Before the first finished request everything runs for ever. `refit_requests`: classes and curves are
    fitted anew after so many more, and rarer as there are more to fit.
    """

    def __init__(
        self,
        memory_requests: float = 10_000.0,
        options: TreeOptions | None = None,
        refit_requests: int = 64,
        recent: RecentOptions | None = None,
    ) -> None:
        if not (math.isfinite(memory_requests) and memory_requests >= 1):
            raise ValueError(f"memory_requests must be finite and >= 1, got {memory_requests}")
        self.hints = HintTrust()
        self.drift = DriftDetector()
        self._options = options or TreeOptions()
        self._recent = (recent or RecentOptions()).within(memory_requests)
        self._memory_requests = memory_requests
        self._refit_requests = refit_requests
        self._held = _Columns(int(2 * memory_requests))
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

    def update(self, finished: Sequence[FinishedRequest]) -> None:
        """Learn from requests that finished since the last update, in the order of their ends."""
        useful = [r for r in finished if r.output_tokens > 0]
        if not useful:
            return
        self._watch([r for r in useful if r.ended])
        self._held.extend(useful)
        self._new += len(useful)
        self._uncorrected += len(useful)
        due = min(max(self._refit_requests, self.finished // 50), self.finished // 4)
        if self._classes is None or self._new >= due:
            self.refit()
        elif self._uncorrected >= _CORRECT_REQUESTS:
            self._correct()

    def refit(self) -> None:
        """Fit classes and curves to what is held now."""
        if not self.finished:
            return
        self._new = 0
        self._classes = fit_classes(self._sample(), self._options)
        self._correct()

    def _correct(self) -> None:
        """Classes stay as they are; the newest requests move their curves."""
        if self._classes is None:
            return
        self._uncorrected = 0
        newest = self._sample(self._recent.reach_requests)
        row = self._classes.classify(newest.prompt, newest.limit)
        self._curves = corrected(self._classes.curves, row, newest, self._recent)
        self._hinted = {}

    def _watch(self, ended: Sequence[FinishedRequest]) -> None:
        """Feed hints' truth and the drift detector, before these requests change the model."""
        for request in ended:
            hint = request.hint_tokens
            if hint is not None and 0.0 < hint < math.inf:  # callers may say anything
                self.hints.update(hint, request.output_tokens)
        if self._classes is not None and ended:
            prompt = np.array([r.prompt_tokens for r in ended], dtype=np.float64)
            tokens = np.array([r.output_tokens for r in ended], dtype=np.float64)
            row = self._classes.classify(prompt, _limits(ended))
            alive = self._curves.survival(row, tokens) + self._curves.survival(row, tokens - 1.0)
            self.drift.update((1.0 - alive / 2).tolist())

    def _sample(self, most: int | None = None) -> Sample:
        """What is held, or the newest `most` of it."""
        prompt, tokens, limit, ended = self._held.columns[:, -(most or self.finished) :]
        age = np.arange(len(prompt))[::-1]
        return Sample(prompt, limit, tokens, ended > 0, np.exp(-age / self._memory_requests))

    def rows(self, requests: Requests) -> Ints:
        """The row of `curves` that holds for each request."""
        if self._classes is None:
            return np.zeros(len(requests.prompt), dtype=np.intp)
        row = self._classes.classify(requests.prompt, requests.limit)
        hinted = np.flatnonzero((requests.hint > 0) & (requests.hint < math.inf))
        if hinted.size:
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
        """`alive` of all, and of the k at `who` after `more` (k, 2), in about the time of one of them."""
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


class _Columns:
    """The last requests, oldest first, up to `most` of them: prompt, output, max_tokens, ended."""

    def __init__(self, most: int) -> None:
        self._most = max(most, 2)
        self._table = np.zeros((4, 1024))
        self.size = 0

    @property
    def columns(self) -> Floats:
        return self._table[:, : self.size]

    def extend(self, finished: Sequence[FinishedRequest]) -> None:
        rows = finished[-self._most :]
        new = np.array(
            [
                [r.prompt_tokens for r in rows],
                [r.output_tokens for r in rows],
                _limits(rows),
                [r.ended for r in rows],
            ],
            dtype=np.float64,
        )
        if self.size + len(rows) > self._table.shape[1]:
            kept = self.columns[:, max(self.size + len(rows) - self._most, 0) :]
            self.size = kept.shape[1]
            self._table = np.concatenate([kept, np.zeros((4, self.size + len(rows)))], axis=1)
        self._table[:, self.size : self.size + len(rows)] = new
        self.size += len(rows)


def _limits(finished: Sequence[FinishedRequest]) -> Floats:
    return np.array([math.inf if r.max_tokens is None else r.max_tokens for r in finished], dtype=np.float64)
