"""The requests that are in the server now: how their batch and KV cache go on, mean and variance.

From single requests where they are listed, with their prompts computed in order as the token budget,
the seats and the KV cache allow; otherwise from batch size and KV use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kvwatt.length_classes import Requests
from kvwatt.state import EngineShape, EngineState
from kvwatt.traffic import Survival, Traffic

FloatArray = npt.NDArray[np.float64]


@runtime_checkable
class RequestLengths(Protocol):
    """What is asked of lengths by request: P(i still runs after ahead[i, k] more tokens)."""

    def alive(self, requests: Requests, ahead: FloatArray) -> FloatArray:
        """Of all, (n, m)."""

    def alive_and_some(
        self, requests: Requests, ahead: FloatArray, who: npt.NDArray[np.intp], more: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Of all after `ahead` (m, n), and of those at `who` (k,) after `more` (k,): (m, n) and (k,)."""


@dataclass(frozen=True, slots=True)
class Present:
    """Those in the server: mean and variance of batch and KV, prompts to compute; all (steps,)."""

    batch: FloatArray
    kv: FloatArray
    batch_var: FloatArray
    kv_var: FloatArray
    blocks: FloatArray
    read: FloatArray  # KV tokens that the requests attend to: shared ones count for each
    prefilling: FloatArray  # requests of the batch that do not decode yet
    prefill_tokens: FloatArray


def present(
    state: EngineState,
    traffic: Traffic,
    shape: EngineShape,
    steps: FloatArray,
    lengths: RequestLengths | None,
) -> Present:
    by_request = lengths or _by_request(traffic.lengths)
    if state.requests and by_request is not None:
        return _from_requests(state, by_request, shape, steps)
    return _from_aggregates(state, traffic, shape, steps)


def _by_request(lengths: Survival | None) -> RequestLengths | None:
    known: object = lengths
    if isinstance(known, RequestLengths):
        return known
    return None if lengths is None else _SameForAll(lengths)


@dataclass(frozen=True, slots=True)
class _SameForAll:
    """One survival function for every request."""

    lengths: Survival

    def alive(self, requests: Requests, ahead: FloatArray) -> FloatArray:
        now = np.maximum(self.lengths.survival(requests.produced), 1e-9)
        future = requests.produced[:, None] + ahead
        later = self.lengths.survival(future.ravel()).reshape(future.shape)
        alive = np.clip(later / now[:, None], 0.0, 1.0)
        alive[(future >= requests.limit[:, None]) & (ahead > 0)] = 0.0
        return np.asarray(np.where(ahead > 0, alive, 1.0))

    def alive_and_some(
        self, requests: Requests, ahead: FloatArray, who: npt.NDArray[np.intp], more: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        return self.alive(requests, ahead.T).T, self.alive(requests.select(who), more[:, None])[:, 0]


def _from_requests(
    state: EngineState, lengths: RequestLengths, shape: EngineShape, steps: FloatArray
) -> Present:
    """Those that decode, and those with prompt left to compute: running ones first, then the queue."""
    requests = Requests.of(state.requests)
    weight = np.array([r.weight for r in state.requests])
    computed = np.array([r.computed_prompt_tokens for r in state.requests], dtype=np.float64)
    held = np.where(computed > 0, computed + requests.produced, 0.0)
    shared = _shared(state, held, weight, shape)
    unfinished = computed < requests.prompt
    if not unfinished.any():
        return _decoding(_Rows(requests, weight, held, shared), lengths, shape, steps)
    inside = _Rows(requests, weight, held, shared).select(~unfinished)
    decoding = _decoding(inside, lengths, shape, steps)
    rest = _Rows(requests, weight, held, shared).select(unfinished)
    return _plus(decoding, _prompts(rest, decoding, lengths, shape, steps))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Requests with the KV tokens they hold and the part of those that others hold too."""

    requests: Requests
    weight: FloatArray
    held: FloatArray
    shared: FloatArray

    def select(self, rows: npt.NDArray[np.bool_]) -> _Rows:
        return _Rows(self.requests.select(rows), self.weight[rows], self.held[rows], self.shared[rows])


def _decoding(rows: _Rows, lengths: RequestLengths, shape: EngineShape, steps: FloatArray) -> Present:
    ahead = np.broadcast_to(steps, (len(rows.weight), len(steps)))
    alive = lengths.alive(rows.requests, ahead)
    nothing = np.zeros_like(steps)
    return Present(*_sums(rows, alive, rows.held[:, None] + steps, shape), nothing, nothing)


def _prompts(
    rows: _Rows, decoding: Present, lengths: RequestLengths, shape: EngineShape, steps: FloatArray
) -> Present:
    """A prompt is in the batch from its admission, grows until its last chunk, then decodes."""
    queued = rows.held <= 0
    # Whoever was preempted computes again what it had produced.
    target = rows.requests.prompt + rows.requests.produced
    todo = target - rows.held
    admitted, ready = _starts(rows, todo, queued, decoding, shape, steps)
    inside = steps >= admitted[:, None]
    decodes = steps >= ready[:, None]
    ahead = np.where(decodes, steps - ready[:, None] + 1.0, 0.0)
    alive = lengths.alive(rows.requests, ahead) * inside
    comes = np.isfinite(admitted)  # within what is looked at; the others have no span
    span = np.maximum(np.where(comes, ready, 1.0) - np.where(comes, admitted, 0.0), 1.0)[:, None]
    progress = np.clip(np.where(inside, steps - admitted[:, None], 0.0) / span, 0.0, 1.0)
    tokens = rows.held[:, None] + todo[:, None] * progress + ahead
    computing = inside & ~decodes
    flow = rows.weight[:, None] * todo[:, None] / span * computing
    return Present(*_sums(rows, alive, tokens, shape), rows.weight @ computing, flow.sum(axis=0))


def _plus(one: Present, other: Present) -> Present:
    return Present(
        one.batch + other.batch,
        one.kv + other.kv,
        one.batch_var + other.batch_var,
        one.kv_var + other.kv_var,
        one.blocks + other.blocks,
        one.read + other.read,
        one.prefilling + other.prefilling,
        one.prefill_tokens + other.prefill_tokens,
    )


def _sums(
    rows: _Rows, alive: FloatArray, tokens: FloatArray, shape: EngineShape
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Batch, KV, their variances, blocks, tokens read. Weight w stands for w independent requests."""
    counted = alive * rows.weight[:, None]
    variance = counted * (1.0 - alive)
    own = tokens - rows.shared[:, None]
    blocks = np.ceil(tokens / shape.block_size) - rows.shared[:, None] / shape.block_size
    spread = variance * own
    return (
        counted.sum(axis=0),
        np.einsum("ij,ij->j", counted, own),
        variance.sum(axis=0),
        np.einsum("ij,ij->j", spread, own),
        np.einsum("ij,ij->j", counted, blocks),
        np.einsum("ij,ij->j", counted, tokens),
    )


def _shared(state: EngineState, held: FloatArray, weight: FloatArray, shape: EngineShape) -> FloatArray:
    """Tokens of each request that others hold too (common prefixes): what the requests hold together
    beyond what the cache has in use, spread in proportion."""
    if not 0.0 < state.kv_used_tokens < float(weight @ held):
        return np.zeros_like(held)
    rounded = np.ceil(held / shape.block_size) * shape.block_size
    return np.minimum(rounded * (1.0 - state.kv_used_tokens / float(weight @ rounded)), held)


def _starts(
    rows: _Rows,
    todo: FloatArray,
    queued: npt.NDArray[np.bool_],
    decoding: Present,
    shape: EngineShape,
    steps: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Step at which each request enters the batch, and step at whose end it has its first token."""
    weight = rows.weight
    seats_taken = np.cumsum(weight)
    blocks_taken = np.cumsum(weight * np.ceil((rows.held + todo) / shape.block_size))
    line = np.linspace(0.0, steps[-1], 4 * len(steps))
    seats = shape.max_num_seqs - np.interp(line, steps, decoding.batch)
    room = max(shape.num_blocks - 1, 1) - np.interp(line, steps, decoding.blocks)
    free = (seats >= seats_taken[:, None]) & (room >= blocks_taken[:, None])
    entry = np.where(free.any(axis=1), line[np.argmax(free, axis=1)], np.inf)
    entry = np.maximum.accumulate(np.where(queued, entry, 0.0))
    budget = max(shape.max_num_batched_tokens - float(decoding.batch[0]), 1.0)
    through = np.cumsum(weight * todo) / budget  # steps of whole budget until this prompt is computed
    before = through - weight * todo / budget
    # First come, first served: whoever enters later is done, and lets others in, that much later.
    late = np.maximum.accumulate(np.maximum(entry - before, 0.0))
    return np.maximum(entry, np.floor(before + late)), np.ceil(through + late - 1e-9)


def _from_aggregates(state: EngineState, traffic: Traffic, shape: EngineShape, steps: FloatArray) -> Present:
    inside = float(state.running + state.waiting)
    alive = equilibrium(traffic, steps)
    each = state.kv_used_tokens / state.running if state.running > 0 else traffic.prompt_mean_tokens
    waiting_kv = state.waiting * traffic.prompt_mean_tokens
    kv = (state.kv_used_tokens + waiting_kv) * alive + inside * alive * steps
    variance = inside * alive * (1.0 - alive)
    budget = max(shape.max_num_batched_tokens - state.running, 1)
    prefill = np.where(steps * budget < waiting_kv, float(budget), 0.0)
    queue = np.minimum(
        np.maximum(waiting_kv - steps * budget, 0.0) / max(traffic.prompt_mean_tokens, 1.0), inside
    )
    kv_variance = variance * (each + steps) ** 2
    return Present(
        inside * alive, kv, variance, kv_variance, kv / shape.block_size, kv, queue * alive, prefill
    )


def equilibrium(traffic: Traffic, steps: FloatArray) -> FloatArray:
    if traffic.lengths is not None:
        return np.clip(traffic.lengths.equilibrium_survival(steps), 0.0, 1.0)
    return np.exp(-steps / traffic.output_mean_tokens)
