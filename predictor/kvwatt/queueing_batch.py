"""Waiting for the first token as a batch-service queue, solved as a Markov chain at step boundaries.

An engine with chunked prefill serves prompt tokens in batches: a step computes as many of the Q tokens
that wait as its budget leaves room for beside the decodes, and lasts T(n) for n of them. Whoever comes
during a step waits for its end. With A(t) the prompt tokens that arrive within t,

    Q' = Q - min(Q, room) + A(T(min(Q, room)))

is a Markov chain: Bailey's bulk-service queue (J. R. Stat. Soc. B 16, 1954) with the service time
depending on the batch, as Inoue has it for GPU servers (Performance Evaluation 147, 2021). A is a
compound Poisson or, with index of dispersion D > 1, a compound negative binomial. Ours: tokens instead
of jobs, so that prompts span steps; decodes enter through T and the room.

Tokens are counted in bins of 1 / `rows` of the room; a prompt between two bins is split so that its mean
is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

PHASES = 6  # parts of a step in which an arrival may fall
UNSTABLE = 0.995  # share of the room that arrivals may take on average


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """A discrete distribution of prompt lengths in tokens."""

    tokens: FloatArray
    share: FloatArray

    @property
    def mean(self) -> float:
        return float(self.tokens @ self.share)

    def bins(self, bin_tokens: float, size: int) -> FloatArray:
        """Probability per bin (size,), at least one bin each; what lies beyond is in the last."""
        place = np.clip(self.tokens / bin_tokens, 1.0, size - 1.0)
        low = place.astype(np.intp)
        up = place - low
        out = np.bincount(low, self.share * (1.0 - up), size)
        out += np.bincount(np.minimum(low + 1, size - 1), self.share * up, size)
        return np.asarray(out[:size])


@dataclass(frozen=True, slots=True, eq=False)
class StepQueue:
    """Engine steps beside a fixed number of decodes. `step_s` (rows + 1,): seconds of a step with 0 to
    `rows` bins of prompt; `rate_per_s` of requests, `dispersion` of their counts; `size`: bins kept."""

    step_s: FloatArray
    bin_tokens: float
    prompts: Prompts
    rate_per_s: float
    dispersion: float
    size: int

    @property
    def rows(self) -> int:
        return len(self.step_s) - 1

    @property
    def stable(self) -> bool:
        """Full steps compute prompts faster than they come."""
        tokens = self.rate_per_s * self.prompts.mean * float(self.step_s[-1])
        return tokens < UNSTABLE * self.rows * self.bin_tokens

    def solve(self) -> Solved:
        """The stationary chain. Raises ValueError where there is none."""
        if not self.stable:
            raise ValueError("prompts come faster than full steps compute them")
        phi = np.fft.rfft(self.prompts.bins(self.bin_tokens, self.size), 2 * self.size)
        come = _lumped(np.fft.irfft(self._arrivals(phi, self.step_s), 2 * self.size), self.size)
        step = np.zeros((self.size, self.size))
        step[: self.rows] = come[:-1]
        for q in range(self.rows, self.size):
            behind = q - self.rows
            step[q, behind:] = come[-1, : self.size - behind]
            step[q, -1] += come[-1, self.size - behind :].sum()
        return Solved(self, come, _stationary(step, self.rows), phi)

    def _arrivals(self, phi: npt.NDArray[np.complex128], times_s: FloatArray) -> npt.NDArray[np.complex128]:
        """Transform of A(t) per time: (times, frequencies)."""
        counts = self.rate_per_s * times_s[:, None]
        over = self.dispersion - 1.0
        if over < 1e-3:
            return np.asarray(np.exp(counts * (phi - 1.0)[None, :]))
        return np.asarray(np.exp(-counts / over * np.log(1.0 - over * (phi - 1.0))[None, :]))


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """`waiting` (size,): probability of so many bins of prompt at the start of a step; `come` (rows + 1,
    size): bins that arrive in a step of each kind."""

    queue: StepQueue
    come: FloatArray
    waiting: FloatArray
    phi: npt.NDArray[np.complex128]

    @property
    def by_row(self) -> FloatArray:
        """Probability that a step computes 0 to `rows` bins: (rows + 1,)."""
        rows = self.queue.rows
        return np.append(self.waiting[:rows], self.waiting[rows:].sum())

    @property
    def mean_step_s(self) -> float:
        """Mean over steps: the time between tokens of a long answer."""
        return float(self.by_row @ self.queue.step_s)

    @property
    def step_of_state(self) -> FloatArray:
        """Seconds of the step that starts with so many bins waiting: (size,)."""
        return self.queue.step_s[np.minimum(np.arange(self.queue.size), self.queue.rows)]

    def forward(self, values: FloatArray) -> FloatArray:
        """P @ values for columns (size, k), P the transition matrix: a few rows, and a correlation for full
        steps, which move all alike."""
        rows, size = self.queue.rows, self.queue.size
        beyond = np.concatenate([values, np.broadcast_to(values[-1:], values.shape)])
        full = np.conj(np.fft.rfft(self.come[-1], 2 * size))[:, None] * np.fft.rfft(beyond, axis=0)
        out = np.empty_like(values)
        out[rows:] = np.fft.irfft(full, 2 * size, axis=0)[: size - rows]
        out[:rows] = (self.come[:-1, :, None] * values).sum(axis=1)
        return out

    def after(self, times_s: FloatArray) -> FloatArray:
        """What waits when somebody's own prompt is done `times_s` (equally likely) after it came: what came
        since, less what its last step had room for on average."""
        q = self.queue
        phi = q._arrivals(self.phi, times_s)
        come = _lumped(np.fft.irfft(phi, 2 * q.size), q.size).mean(axis=0)
        spare = min(int(q.rows - 0.5 - float(self.by_row @ np.arange(q.rows + 1)) / 2.0), q.rows // 2)
        out = np.zeros(q.size)
        out[: q.size - spare] = come[spare:]
        out[0] += come[:spare].sum()
        return out

    def first_token(self) -> tuple[FloatArray, FloatArray]:
        """Seconds until the first token and their probabilities, flat arrays.

        A request comes in a step with probability by its length, at any phase of it; behind it in the last
        step come those who arrive until then, at their mean.
        """
        q, size = self.queue, self.queue.size
        rows, step_s = q.rows, q.step_s
        within = (np.arange(PHASES) + 0.5) / PHASES
        in_step = self.by_row * step_s
        weight = in_step / in_step.sum() / PHASES
        left_behind = np.zeros((rows + 1, size))
        left_behind[:, 0] = 1.0
        left_behind[-1] = 0.0
        left_behind[-1, : size - rows] = self.waiting[rows:] / max(self.waiting[rows:].sum(), 1e-300)
        behind_phi = np.fft.rfft(left_behind, 2 * size, axis=1)
        bins = np.arange(size)
        full = np.maximum(np.ceil(bins / rows) - 1.0, 0.0)
        last = bins - full * rows
        times, shares = [], []
        for part in within:
            ahead = np.fft.irfft(behind_phi * q._arrivals(self.phi, part * step_s) * self.phi, 2 * size)
            mass = _lumped(ahead, size) * weight[:, None]
            rest_s = (1.0 - part) * step_s[:, None]
            come = q.rate_per_s * q.prompts.mean / q.bin_tokens * (rest_s + full * step_s[-1])
            last_s = np.interp(np.minimum(last + come, rows), np.arange(rows + 1), step_s)
            times.append(rest_s + full * step_s[-1] + last_s)
            shares.append(mass)
        return np.concatenate(times).ravel(), np.concatenate(shares).ravel()


def _lumped(pmf: FloatArray, size: int) -> FloatArray:
    """Rows of 2 x size cut to `size`, what lies beyond added to the last bin; rounding noise removed."""
    out = np.maximum(pmf[:, :size], 0.0)
    out[:, -1] += np.maximum(pmf[:, size:], 0.0).sum(axis=1)
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def _stationary(step: FloatArray, rows: int) -> FloatArray:
    """The row vector x with x = x P and sum 1; `step` is overwritten.

    Elimination of Grassmann, Taksar and Heyman (Operations Research 33, 1985): no subtractions, so exact in
    every digit. From any state one gets down by at most `rows`, which keeps each elimination in a band.
    Without BLAS, whose threads take seconds for matrices of this size where cores are busy.
    """
    size = len(step)
    for n in range(size - 1, 0, -1):
        low = max(n - rows, 0)
        step[:n, n] /= max(float(step[n, low:n].sum()), 1e-300)
        step[:n, low:n] += step[:n, n, None] * step[n, low:n]
    found = np.zeros(size)
    found[0] = 1.0
    for n in range(1, size):
        found[n] = float((found[:n] * step[:n, n]).sum())
    return np.asarray(found / found.sum())
