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

How much of a miss nothing learned in the first half could have avoided is told by `moved`. A model learned
from every other request of the first half divides all pairs (prompt, tokens so far) into ten; the other
requests tell each tenth's mean remainder then, and the second half what became of it (and the same with the
two kinds of requests exchanged). Whoever knew the first half's means exactly would find the one over the
other. Where its interval lies outside 1 +- 5 %, the truth itself moved by more than the bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests
from kvwatt.length_recent import RecentOptions
from kvwatt_sim.traces import TraceRequest, load_azure

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
DECILES = 10
TOKEN_S = 0.04  # of the online variant: between two tokens of a request
LOOK_S = 5.0  # of the online variant: between two looks at what has finished
RESAMPLES = 2000
LEARNED_AT_ONCE = 64
ALL_ALIKE = 1e7  # a memory of so many requests forgets none of a trace
SEED = 5

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LengthScore:
    """`ratios`: observed / expected per decile, lowest expectation first; `drawn`: the same in each resample
    of whole requests, (RESAMPLES, DECILES). `log_likelihood`: per finished request. `expected_tokens`: mean
    expectation per decile, which tells how many tokens a ratio is worth."""

    ratios: tuple[float, ...]
    expected_tokens: tuple[float, ...]
    drawn: Floats
    mean_ratio: float
    absolute_tokens: float
    log_likelihood: float

    @property
    def interval(self) -> Floats:
        """95 % of each decile's ratio; (2, DECILES)."""
        return np.asarray(np.quantile(self.drawn, (0.025, 0.975), axis=0))

    def refuted(self, distance: float) -> list[int]:
        """The deciles, from 1 on, that chance does not bring back within `distance` of 1."""
        low, high = self.interval
        return [d + 1 for d in range(DECILES) if low[d] > 1.0 + distance or high[d] < 1.0 - distance]

    @property
    def resampled(self) -> Floats:
        """The largest distance from 1 that a right model showed in each resample."""
        return np.asarray(np.abs(self.drawn / np.array(self.ratios) - 1.0).max(axis=1))

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


def learn(model: ClassLengths, requests: Sequence[TraceRequest]) -> None:
    """A few at a time, as a daemon does: memories are judged by requests that they had not seen."""
    for first in range(0, len(requests), LEARNED_AT_ONCE):
        model.update(finished(requests[first : first + LEARNED_AT_ONCE]))


def frozen(requests: Sequence[TraceRequest]) -> LengthScore:
    """Learn the first half, then predict the second without looking."""
    half = len(requests) // 2
    model = ClassLengths()
    learn(model, requests[:half])
    return _score([_Part.whole(model, requests[half:])])


def online(requests: Sequence[TraceRequest]) -> LengthScore:
    """Predict the second half too, learning on."""
    return prequential(requests, len(requests) // 2, ClassLengths())


def prequential(requests: Sequence[TraceRequest], begin: int, model: ClassLengths) -> LengthScore:
    """Learn up to request `begin`; then predict every token at its time, with what had finished before a
    look that was at most `LOOK_S` ago. A request makes a token every `TOKEN_S` from its arrival on."""
    learn(model, requests[:begin])
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
class Moved:
    """Mean remainder of the second half over that of the first, per tenth of the pairs; 95 % (2, DECILES)."""

    ratios: Floats
    interval: Floats

    def beyond(self, distance: float) -> list[int]:
        """The deciles, from 1 on, that surely moved by more."""
        low, high = self.interval
        return [d + 1 for d in range(DECILES) if low[d] > 1.0 + distance or high[d] < 1.0 - distance]


def moved(requests: Sequence[TraceRequest]) -> Moved:
    """What lengths did between the halves, each request of the same prompt and tokens so far."""
    half = len(requests) // 2
    first, second = requests[:half], requests[half:]
    then, now = [], []
    for fold in (0, 1):
        model = ClassLengths(ALL_ALIKE, recent=RecentOptions(prior_requests=1e9))
        model.update(finished(first[fold::2]))
        old, new = (_Part.whole(model, part) for part in (first[1 - fold :: 2], second))
        edges = np.quantile(new.expected, np.arange(1, DECILES) / DECILES)
        then.append(old.sums(np.searchsorted(edges, old.expected)))
        now.append(new.sums(np.searchsorted(edges, new.expected)))
    # Of the first half each request counts in one fold, of the second in both.
    before = _resampled(*(np.concatenate(part) for part in zip(*then, strict=True)), SEED)
    after = _resampled(*(np.sum(part, axis=0) for part in zip(*now, strict=True)), SEED + 1)
    interval = np.quantile(after[1] / before[1], (0.025, 0.975), axis=0)
    return Moved(after[0] / before[0], np.asarray(interval))


def _resampled(want: Floats, got: Floats, seed: int) -> tuple[Floats, Floats]:
    """Observed / expected per tenth of sums per request, and the same in each resample of requests."""
    weight = np.random.default_rng(seed).poisson(1.0, (RESAMPLES, len(want))).astype(np.float64)
    return got.sum(axis=0) / want.sum(axis=0), (weight @ got) / np.maximum(weight @ want, 1e-9)


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

    @classmethod
    def whole(cls, model: ClassLengths, requests: Sequence[TraceRequest]) -> _Part:
        """Every token of each request."""
        total = np.array([r.output_tokens for r in requests])
        return cls.of(model, requests, np.zeros_like(total), total)

    def sums(self, tenth: Ints) -> tuple[Floats, Floats]:
        """Expected and observed tokens per request and tenth, so that requests can be resampled whole."""
        size = int(self.who.max()) + 1
        flat = self.who * DECILES + tenth
        want = np.bincount(flat, self.expected, size * DECILES).reshape(size, DECILES)
        got = np.bincount(flat, self.observed, size * DECILES).reshape(size, DECILES)
        return want, got


def _log_likelihood(model: ClassLengths, prompt: Floats, total: Ints) -> Floats:
    """Of each request's length when it begins."""
    new = Requests.known(prompt, np.zeros(len(prompt)))
    alive = model.alive(new, np.stack([total - 1.0, total.astype(np.float64)], axis=1))
    return np.asarray(np.log(np.maximum(alive[:, 0] - alive[:, 1], 1e-9)))


def _score(parts: Sequence[_Part]) -> LengthScore:
    columns = [(part.who, part.expected, part.observed, part.log_likelihood) for part in parts]
    all_of = _Part(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    expected, observed = all_of.expected, all_of.observed
    order = np.argsort(expected, kind="stable")
    tenth = np.empty(len(order), dtype=np.intp)
    tenth[order] = np.arange(len(order)) * DECILES // len(order)
    want, got = all_of.sums(tenth)
    ratios, drawn = _resampled(want, got, SEED)
    return LengthScore(
        tuple(float(ratio) for ratio in ratios),
        tuple(float(x) for x in want.sum(axis=0) / np.bincount(tenth, minlength=DECILES)),
        np.asarray(drawn),
        float(observed.sum() / expected.sum()),
        float(np.abs(observed - expected).mean()),
        float(np.mean(all_of.log_likelihood)),
    )
