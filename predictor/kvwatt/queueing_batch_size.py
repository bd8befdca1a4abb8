"""How many requests decode at once: a birth-death chain with the step time in its death rate.

Requests join at rate lambda; with B of them decoding each step takes tau(B), so each leaves at rate
1 / (S tau(B)) with S its mean decode steps. That is processor sharing with a speed that depends on the
number, whose stationary distribution does not depend on the distribution of S (Kelly, Reversibility and
Stochastic Networks, 1979, ch. 3). Beyond the seats requests wait in line. The mean obeys Little's law,
B = lambda S tau: the fixed point of rate, batch and clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LONGEST_LINE = 400  # requests beyond the seats that are told apart
FULL = 0.999  # departures per arrival with every seat taken, below which no line is stable


@dataclass(frozen=True, slots=True, eq=False)
class BatchSize:
    """`share` (seats + 1 + line,): probability of so many requests, decoding or waiting for a seat."""

    share: FloatArray
    seats: int
    leave_per_s: float  # with every seat taken
    stable: bool

    @property
    def decoding(self) -> FloatArray:
        """Probability of 0 .. seats decoding requests."""
        return np.append(self.share[: self.seats], self.share[self.seats :].sum())

    @property
    def mean(self) -> float:
        """Decoding requests on average."""
        return float(self.decoding @ np.arange(self.seats + 1))

    def seat_wait(self) -> tuple[FloatArray, FloatArray]:
        """Seconds an arrival waits for a seat and their probabilities, at the mean of each place in line."""
        line = self.share[self.seats :]
        wait_s = (np.arange(len(line)) + 1.0) / self.leave_per_s
        free = float(self.share[: self.seats].sum())
        return np.append(0.0, wait_s), np.append(free, line)


def batch_size(rate_per_s: float, steps: float, tau_s: FloatArray, dispersion: float = 1.0) -> BatchSize:
    """`tau_s` (seats + 1,): seconds a step with 0 .. seats decodes; `steps`: mean decode steps.

    In the line the ratio of neighbours is that of M/M/1 in heavy traffic with arrivals of `dispersion`:
    rho to the power 2 / (D + 1).
    """
    seats = len(tau_s) - 1
    count = np.arange(1, seats + 1)
    ratio = rate_per_s * steps * tau_s[1:] / count
    log_share = np.append(0.0, np.cumsum(np.log(np.maximum(ratio, 1e-300))))
    stable = bool(ratio[-1] < FULL)
    line = min(ratio[-1], FULL) ** (2.0 / (dispersion + 1.0))
    beyond = log_share[-1] + np.log(line) * np.arange(1, LONGEST_LINE + 1)
    log_share = np.concatenate([log_share, beyond])
    share = np.exp(log_share - log_share.max())
    return BatchSize(share / share.sum(), seats, seats / max(steps * float(tau_s[-1]), 1e-9), stable)
