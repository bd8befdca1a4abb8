"""What is asked of an instance, and distributions of what it answers with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.queueing_batch import Prompts

FloatArray = npt.NDArray[np.float64]

PER_DECADE = 200
LOWEST_S, DECADES = 1e-3, 6
BINS = PER_DECADE * DECADES
_EDGES: FloatArray = LOWEST_S * 10.0 ** (np.arange(BINS) / PER_DECADE)


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Traffic but for its rate. `prompts` to be computed (prefix hits taken off) and `outputs`, in tokens.

    `dispersion`: variance / mean of arrival counts over about the seconds that a queue lasts; 1 = Poisson.
    `held`: prompts of decoding requests met at random, where those with long answers have others (None:
    they do not).
    """

    prompts: Prompts
    outputs: Prompts
    dispersion: float = 1.0
    held: Prompts | None = None

    @classmethod
    def of(cls, prompts: npt.ArrayLike, outputs: npt.ArrayLike, dispersion: float = 1.0) -> Demand:
        """From finished requests, one prompt and output length each. Raises ValueError as `lengths`."""
        held = _weighted(np.asarray(prompts, dtype=np.float64), np.asarray(outputs, dtype=np.float64))
        return cls(lengths(prompts), lengths(outputs), dispersion, held)

    @property
    def decode_steps(self) -> float:
        """Mean engine steps after the first token."""
        return max(self.outputs.mean - 1.0, 1e-3)

    @property
    def context_tokens(self) -> float:
        """Mean KV tokens of a decoding request: met at random, so weighted by how long it decodes."""
        tokens, share = self.outputs.tokens, self.outputs.share
        prompt = self.held or self.prompts
        return prompt.mean + float(tokens**2 @ share) / (2.0 * self.outputs.mean)

    @property
    def held_tokens(self) -> tuple[FloatArray, FloatArray]:
        """KV tokens of a decoding request and their probabilities: prompt and the part already produced."""
        tokens, share = self.outputs.tokens, self.outputs.share * self.outputs.tokens
        parts = np.array([0.17, 0.5, 0.83])
        produced = (tokens[:, None] * parts).ravel()
        weight = np.repeat(share / share.sum() / len(parts), len(parts))
        prompt = self.held or self.prompts
        total = prompt.tokens[:, None] + produced
        return total.ravel(), (prompt.share[:, None] * weight).ravel()


def lengths(tokens: npt.ArrayLike, most: int = 64) -> Prompts:
    """A sample of lengths as at most `most` values: half of them for the longest tenth, which makes waits.

    Raises ValueError for no lengths, negative and infinite ones.
    """
    values = np.sort(np.asarray(tokens, dtype=np.float64))
    if not len(values) or not (values[0] >= 0.0 and values[-1] < np.inf):
        raise ValueError("lengths must be finite, >= 0 and at least one")
    if len(values) <= most:
        parts = np.split(values, len(values))
    else:
        usual = len(values) - max(len(values) // 10, 1)
        half = max(most // 2, 1)
        parts = [p for end in (values[:usual], values[usual:]) for p in np.array_split(end, half) if len(p)]
    share = np.array([float(len(part)) for part in parts]) / len(values)
    return Prompts(np.array([part.mean() for part in parts]), share)


def _weighted(tokens: FloatArray, weight: FloatArray, most: int = 64) -> Prompts:
    """A weighted sample as at most `most` values of about equal probability."""
    order = np.argsort(tokens, kind="stable")
    values, share = tokens[order], weight[order] / weight.sum()
    place = np.minimum((np.cumsum(share) * most * (1.0 - 1e-12)).astype(np.intp), most - 1)
    total = np.bincount(place, share, most).astype(np.float64)
    mean = np.bincount(place, share * values, most).astype(np.float64)
    used = total > 0.0
    return Prompts(mean[used] / total[used], total[used])


@dataclass(frozen=True, slots=True, eq=False)
class Latency:
    """Probabilities over logarithmic bins of seconds; the last one stands for never."""

    mass: FloatArray

    @classmethod
    def of(cls, seconds: FloatArray, share: FloatArray) -> Latency:
        """From values and their weights, of one shape; weights need not sum to 1."""
        safe = np.clip(seconds, LOWEST_S, LOWEST_S * 10.0**DECADES * 0.999)
        place = np.ceil(np.log10(safe / LOWEST_S) * PER_DECADE).astype(np.intp)
        mass = np.bincount(np.minimum(place, BINS - 1), share, BINS)
        return cls(mass / max(mass.sum(), 1e-300))

    @classmethod
    def mixed(cls, parts: list[Latency], weights: FloatArray) -> Latency:
        """The mixture of several, weights summing to 1."""
        return cls(np.asarray(np.sum([w * p.mass for p, w in zip(parts, weights, strict=True)], axis=0)))

    def quantile(self, level: float) -> float:
        """Seconds that the share `level` stays within, to half a percent; inf where it never comes."""
        place = int(np.searchsorted(np.cumsum(self.mass), level - 1e-12))
        return float(_EDGES[place]) if place < BINS - 1 else float("inf")

    def within(self, limit_s: float) -> float:
        """Share within `limit_s`."""
        return float(self.mass[: int(np.searchsorted(_EDGES, limit_s, side="right"))].sum())

    @property
    def mean(self) -> float:
        """Seconds on average."""
        return float(self.mass @ _EDGES)


NEVER = Latency(np.append(np.zeros(BINS - 1), 1.0))
