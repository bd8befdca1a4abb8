"""Is the expected remainder of a running request right? Observed over expected, decile by decile.

Part of bench/projection.py. A running request met at a random moment is length-biased: every request is
seen at each of its tokens. Instead of sampling moments, all pairs (request, tokens produced) are taken,
which is what a snapshot at every step would see; no g is drawn at random. Deciles are tenths of those
pairs in the order of their expectation. The second half of a trace is predicted from the first.

How far from 1 a perfectly calibrated model would come by chance is told by resampling whole requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests
from kvwatt_sim.traces import TraceRequest, load_azure

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
DECILES = 10
BLOCK = 64  # requests between two looks of the online variant
RESAMPLES = 2000
SEED = 5

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LengthScore:
    """`ratios`: observed / expected per decile, lowest expectation first. `chance`: the largest distance
    from 1 that a right model would show in one of two cases. `mean_ratio`: over everything."""

    ratios: tuple[float, ...]
    chance: float
    mean_ratio: float
    absolute_tokens: float

    @property
    def worst(self) -> float:
        return max(abs(ratio - 1.0) for ratio in self.ratios)


def azure(kind: str) -> tuple[TraceRequest, ...]:
    return load_azure(TRACES / f"AzureLLMInferenceTrace_{kind}_2023.csv")


def finished(requests: Sequence[TraceRequest]) -> list[FinishedRequest]:
    return [FinishedRequest(r.prompt_tokens, r.output_tokens) for r in requests]


def frozen(requests: Sequence[TraceRequest]) -> LengthScore:
    """Learn the first half, then predict the second without looking."""
    half = len(requests) // 2
    model = ClassLengths()
    model.update(finished(requests[:half]))
    return _score(*_expect(model, requests[half:], 0))


def online(requests: Sequence[TraceRequest]) -> LengthScore:
    """Predict the second half too, learning on: each block knows what came a block before it and earlier."""
    half = len(requests) // 2
    model = ClassLengths()
    model.update(finished(requests[:half]))
    parts = []
    for begin in range(half, len(requests), BLOCK):
        if begin > half:
            model.update(finished(requests[max(begin - 2 * BLOCK, half) : begin - BLOCK]))
        parts.append(_expect(model, requests[begin : begin + BLOCK], begin - half))
    who, expected, observed = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _score(who, expected, observed)


def shuffled(requests: Sequence[TraceRequest]) -> LengthScore:
    """As `frozen` with the halves drawn at random: what is left when the trace cannot drift between them."""
    order = np.random.default_rng(SEED).permutation(len(requests))
    return frozen([requests[i] for i in order])


def _expect(model: ClassLengths, requests: Sequence[TraceRequest], first: int) -> tuple[Ints, Floats, Floats]:
    """Request, expected and observed remainder for every token of every request."""
    prompt = np.array([r.prompt_tokens for r in requests], dtype=np.float64)
    total = np.array([r.output_tokens for r in requests])
    who = np.repeat(np.arange(len(total)), total)
    produced = (np.arange(len(who)) - np.repeat(np.cumsum(total) - total, total)).astype(np.float64)
    expected = model.expected_remaining(Requests.known(prompt[who], produced))
    return who + first, expected, total[who] - produced


def _score(who: Ints, expected: Floats, observed: Floats) -> LengthScore:
    order = np.argsort(expected, kind="stable")
    tenth = np.empty(len(order), dtype=np.intp)
    tenth[order] = np.arange(len(order)) * DECILES // len(order)
    size = int(who.max()) + 1
    flat = who * DECILES + tenth
    # Per request and decile: sums, so that requests can be resampled whole.
    want = np.bincount(flat, expected, size * DECILES).reshape(size, DECILES)
    got = np.bincount(flat, observed, size * DECILES).reshape(size, DECILES)
    ratios = got.sum(axis=0) / want.sum(axis=0)
    weight = np.random.default_rng(SEED).poisson(1.0, (RESAMPLES, size)).astype(np.float64)
    drawn = (weight @ got) / np.maximum(weight @ want, 1e-9)
    chance = float(np.median(np.abs(drawn / ratios - 1.0).max(axis=1)))
    return LengthScore(
        tuple(float(ratio) for ratio in ratios),
        chance,
        float(observed.sum() / expected.sum()),
        float(np.abs(observed - expected).mean()),
    )
