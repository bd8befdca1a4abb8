"""Is the expected remainder of a running request right? Observed over expected, decile by decile.

Part of bench/projection.py. A running request met at a random moment is length-biased: every request is
seen at each of its tokens. Instead of sampling moments, all pairs (request, tokens produced) are taken,
which is what a snapshot at every step would see; no g is drawn at random. Deciles are tenths of those
pairs in the order of their expectation. The second half of a trace is predicted from the first:

    frozen      the first half is learned, then the second predicted without looking
    online      what the daemon does: it learns on while it predicts, from what had finished before
    exchanged   frozen, with the two halves drawn at random from the whole trace, many times over

How far from 1 a right model would come by chance is told in two ways. `chance`: whole requests of the
scored half are resampled, the model held fixed. `exchanged`: nothing can drift between halves drawn at
random, so their scores are those of this model on a trace that does not change, the sampling of both the
learned and the scored half included; by exchangeability the ranks of `frozen` among them are a test of drift.
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
TOKEN_S = 0.04  # of the online variant: between two tokens of a request
LOOK_S = 5.0  # of the online variant: between two looks at what has finished
RESAMPLES = 2000
SEED = 5

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LengthScore:
    """`ratios`: observed / expected per decile, lowest expectation first. `resampled`: the largest
    distance from 1 that a right model showed in each resample. `log_likelihood`: per finished request.
    `expected_tokens`: mean expectation per decile, which tells how many tokens a ratio is worth."""

    ratios: tuple[float, ...]
    expected_tokens: tuple[float, ...]
    resampled: Floats
    mean_ratio: float
    absolute_tokens: float
    log_likelihood: float

    @property
    def worst(self) -> float:
        """Largest distance of a decile from 1."""
        return max(abs(ratio - 1.0) for ratio in self.ratios)

    @property
    def chance(self) -> float:
        """The same of a right model, in the median."""
        return float(np.median(self.resampled))

    @property
    def chance_95(self) -> float:
        """A right model exceeds it in one of twenty cases."""
        return float(np.quantile(self.resampled, 0.95))

    def within(self, distance: float) -> float:
        """How often a right model would have all deciles within `distance`."""
        return float(np.mean(self.resampled <= distance))


def azure(kind: str) -> tuple[TraceRequest, ...]:
    return load_azure(TRACES / f"AzureLLMInferenceTrace_{kind}_2023.csv")


def finished(requests: Sequence[TraceRequest]) -> list[FinishedRequest]:
    return [FinishedRequest(r.prompt_tokens, r.output_tokens) for r in requests]


def frozen(requests: Sequence[TraceRequest]) -> LengthScore:
    """Learn the first half, then predict the second without looking."""
    half = len(requests) // 2
    model = ClassLengths()
    model.update(finished(requests[:half]))
    rest = requests[half:]
    total = np.array([r.output_tokens for r in rest])
    return _score([_Part.of(model, rest, np.zeros_like(total), total)])


def online(requests: Sequence[TraceRequest]) -> LengthScore:
    """Predict the second half too, learning on."""
    return prequential(requests, len(requests) // 2, ClassLengths())


def prequential(requests: Sequence[TraceRequest], begin: int, model: ClassLengths) -> LengthScore:
    """Learn up to request `begin`; then predict every token at its time, with what had finished before a
    look that was at most `LOOK_S` ago. A request makes a token every `TOKEN_S` from its arrival on."""
    model.update(finished(requests[:begin]))
    rest = requests[begin:]
    arrival_s = np.array([r.arrival_s for r in rest])
    total = np.array([r.output_tokens for r in rest])
    end_s = arrival_s + total * TOKEN_S
    ends = np.argsort(end_s, kind="stable")
    looks_s = np.arange(arrival_s[0], end_s.max() + LOOK_S, LOOK_S)
    told = np.searchsorted(end_s[ends], looks_s)
    parts = []
    for look, (from_s, before) in enumerate(zip(looks_s, told, strict=True)):
        if look:
            model.update(finished([rest[i] for i in ends[told[look - 1] : before]]))
        first, last = (np.ceil((t - arrival_s) / TOKEN_S).clip(0, total) for t in (from_s, from_s + LOOK_S))
        parts.append(_Part.of(model, rest, first.astype(np.intp), last.astype(np.intp)))
    return _score(parts)


def exchanged(requests: Sequence[TraceRequest], draws: int) -> Floats:
    """Worst decile of `frozen` with halves drawn at random, per draw."""
    source = np.random.default_rng(SEED)
    orders = (source.permutation(len(requests)) for _ in range(draws))
    return np.array([frozen([requests[i] for i in order]).worst for order in orders])


@dataclass(frozen=True, slots=True)
class _Part:
    """Request, expected and observed remainder per token; log likelihoods of the requests that began."""

    who: Ints
    expected: Floats
    observed: Floats
    log_likelihood: Floats

    @classmethod
    def of(cls, model: ClassLengths, requests: Sequence[TraceRequest], first: Ints, last: Ints) -> _Part:
        """Tokens `first` to `last` - 1 of each request under the model as it is."""
        prompt = np.array([r.prompt_tokens for r in requests], dtype=np.float64)
        total = np.array([r.output_tokens for r in requests])
        count = last - first
        who = np.repeat(np.arange(len(total)), count)
        within = np.arange(len(who)) - np.repeat(np.cumsum(count) - count, count)
        produced = (within + first[who]).astype(np.float64)
        expected = model.expected_remaining(Requests.known(prompt[who], produced))
        began = (first == 0) & (count > 0)
        likelihood = _log_likelihood(model, prompt[began], total[began])
        return cls(who, expected, total[who] - produced, likelihood)


def _log_likelihood(model: ClassLengths, prompt: Floats, total: Ints) -> Floats:
    """Of each request's length when it begins."""
    new = Requests.known(prompt, np.zeros(len(prompt)))
    alive = model.alive(new, np.stack([total - 1.0, total.astype(np.float64)], axis=1))
    return np.asarray(np.log(np.maximum(alive[:, 0] - alive[:, 1], 1e-9)))


def _score(parts: Sequence[_Part]) -> LengthScore:
    who = np.concatenate([part.who for part in parts])
    expected = np.concatenate([part.expected for part in parts])
    observed = np.concatenate([part.observed for part in parts])
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
    return LengthScore(
        tuple(float(ratio) for ratio in ratios),
        tuple(float(x) for x in want.sum(axis=0) / np.bincount(tenth, minlength=DECILES)),
        np.asarray(np.abs(drawn / ratios - 1.0).max(axis=1)),
        float(observed.sum() / expected.sum()),
        float(np.abs(observed - expected).mean()),
        float(np.mean(np.concatenate([part.log_likelihood for part in parts]))),
    )
