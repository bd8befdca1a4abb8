"""How many requests decode at once: a birth-death chain with the step time in its death rate.

Requests join at rate lambda; with B of them decoding each step takes tau(B), so each leaves at rate
1 / (S tau(B)) with S its mean decode steps. That is processor sharing with a speed that depends on the
number, whose stationary distribution does not depend on the distribution of S (Kelly, Reversibility and
Stochastic Networks, 1979, ch. 3). The mean obeys Little's law, B = lambda S tau: the fixed point of rate,
batch and clock.

Seats are limited by the scheduler, or by the KV cache, which holds fewer large requests than small ones:
how many fit is a distribution (ours), taken to change as quickly as requests come and go. Whoever finds no
seat waits in line for as many departures as it has places ahead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

FloatArray = npt.NDArray[np.float64]

LONGEST_LINE = 300  # requests beyond the seats that are told apart
FULL = 0.999  # arrivals per departure with every seat taken, from which on no line is stable
BINS = 512  # of KV cache, for the number that fits
LEAST = 1e-5  # probability of a number that fits, below which it is left out
PLACES = 40  # in line that are told apart in waiting times
LEVELS: FloatArray = np.array([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93, 0.975, 0.995])
SHARES: FloatArray = np.diff(np.append(0.0, np.append((LEVELS[1:] + LEVELS[:-1]) / 2.0, 1.0)))


@dataclass(frozen=True, slots=True, eq=False)
class BatchSize:
    """`share` (n,): probability of so many requests inside, decoding or in line; `decoding` (seats + 1,):
    of so many that decode; `in_line` (numbers, places): that so many fit and an arrival is in this place in
    line, from 1;
    `held_up`: share of arrivals that would fit beside those inside when the first in line does not;
    `leave_per_s` (numbers,): departures while there is a line."""

    share: FloatArray
    decoding: FloatArray
    in_line: FloatArray
    held_up: float
    rate_per_s: float
    leave_per_s: FloatArray
    stable: bool

    @property
    def mean(self) -> float:
        """Decoding requests on average."""
        return float(self.decoding @ np.arange(len(self.decoding)))

    def seat_wait(self) -> tuple[FloatArray, FloatArray]:
        """Seconds that those wait who find no seat, and their probabilities (sum: share of all who wait)."""
        departures = gammaincinv(np.arange(1, PLACES + 1)[:, None], LEVELS)  # Erlang: one per place
        seconds = (departures / self.leave_per_s[:, None, None]).ravel()
        share = (self.in_line[:, :, None] * SHARES).ravel()
        # First come, first served: who comes while a large request waits waits for the rest of its time.
        behind = np.minimum(self.rate_per_s * seconds, 1.0) * share * self.held_up
        return np.concatenate([seconds, seconds / 2.0]), np.concatenate([share, behind])


def batch_size(
    rate_per_s: float, steps: float, tau_s: FloatArray, fits: FloatArray, dispersion: float = 1.0
) -> BatchSize:
    """`tau_s` (seats + 1,): seconds a step with 0 .. seats decodes; `steps`: mean decode steps; `fits`
    (seats + 1,): probability that so many fit.

    In the line the ratio of neighbours is that of M/M/1 in heavy traffic with arrivals of `dispersion`:
    rho to the power 2 / (D + 1).
    """
    seats = len(tau_s) - 1
    count = np.arange(seats + 1.0)
    speed = count / np.maximum(tau_s, 1e-9)
    # With N inside, min(N, k) decode if k fit: mean over k.
    more = np.cumsum(fits[::-1])[::-1]  # P(k >= n)
    leave = np.cumsum(np.append(0.0, np.diff(speed)) * more) / steps
    ratio = rate_per_s / np.maximum(leave[1:], 1e-300)
    line = min(float(ratio[-1]), FULL) ** (2.0 / (dispersion + 1.0))
    log_ratio = np.log(np.maximum(ratio, 1e-300))
    usual = int(fits @ count)
    log_ratio[usual:] *= 2.0 / (dispersion + 1.0)
    log_share = np.append(0.0, np.cumsum(log_ratio))
    beyond = log_share[-1] + np.log(max(line, 1e-300)) * np.arange(1, LONGEST_LINE + 1)
    log_share = np.concatenate([log_share, beyond])
    share = np.exp(log_share - log_share.max())
    share /= share.sum()
    return BatchSize(
        share,
        _decoding(share, fits),
        _in_line(share, fits),
        _held_up(share, fits),
        rate_per_s,
        speed[fits > LEAST] / steps,
        bool(ratio[-1] < FULL),
    )


def _decoding(share: FloatArray, fits: FloatArray) -> FloatArray:
    """P(min(N, k) = n) with N and k independent."""
    seats = len(fits) - 1
    inside = np.append(share[:seats], share[seats:].sum())
    at_least = np.cumsum(inside[::-1])[::-1] * np.cumsum(fits[::-1])[::-1]
    return np.asarray(at_least - np.append(at_least[1:], 0.0))


def _in_line(share: FloatArray, fits: FloatArray) -> FloatArray:
    """P(k fit and N - k + 1 = j) for j = 1 .. PLACES (the last: or more), a row per k that may be."""
    numbers = np.flatnonzero(fits > LEAST)
    places = np.zeros((len(numbers), PLACES))
    for row, k in enumerate(numbers):
        line = share[k:]
        most = min(len(line), PLACES - 1)
        places[row, :most] = fits[k] * line[:most]
        places[row, -1] += fits[k] * line[most:].sum()
    return places


def _held_up(share: FloatArray, fits: FloatArray) -> float:
    """P(k' > N | N >= k), k and k' of two requests."""
    seats = len(fits) - 1
    at_most = np.cumsum(fits)  # P(k <= n)
    inside = share[: seats + 1]
    blocked = float(inside @ at_most) + float(share[seats + 1 :].sum())
    return float(inside @ (at_most * (1.0 - at_most))) / max(blocked, 1e-300)


def fitting(
    room_tokens: float, held: tuple[FloatArray, FloatArray], coming: tuple[FloatArray, FloatArray], most: int
) -> FloatArray:
    """Probability that 0 .. n requests fit `room_tokens` of KV cache, n as large as may be, at most `most`.

    `held`: tokens and probability of what a request inside holds, `coming`: of what the next one needs to
    be admitted. P(n + 1 fit) = P(n held + one coming <= room).
    """
    size, bin_tokens = 2 * BINS, room_tokens / BINS
    inside = np.fft.rfft(_binned(*held, bin_tokens, size), 2 * size)
    total = np.fft.rfft(_binned(*coming, bin_tokens, size), 2 * size)
    at_least = [1.0]
    while len(at_least) <= most and at_least[-1] > 1e-3:
        law = np.fft.irfft(total, 2 * size)
        at_least.append(min(float(np.clip(law[: BINS + 1].sum(), 0.0, 1.0)), at_least[-1]))
        total = total * inside
        folded = np.fft.irfft(total, 2 * size)
        folded[size:] = 0.0  # far beyond the room; kept from wrapping round
        total = np.fft.rfft(folded)
    at_least = at_least[: most + 1]
    law = np.asarray(at_least) - np.append(at_least[1:], 0.0)
    return np.asarray(law / law.sum())


def _binned(tokens: FloatArray, share: FloatArray, bin_tokens: float, size: int) -> FloatArray:
    place = np.clip(tokens / bin_tokens, 0.0, size - 2.0)
    low = place.astype(np.intp)
    up = place - low
    out = np.bincount(low, share * (1.0 - up), size) + np.bincount(low + 1, share * up, size)
    return np.asarray(out)
