"""AGFT-like: a contextual bandit that learns on /metrics which clock pays, every 0.3 s.

LinUCB (Li et al., WWW 2010, disjoint model): per clock a ridge regression of the reward on the context;
take the clock of the largest x.theta + alpha sqrt(x' A^-1 x). Context: window means of the metrics page
(rates of arrival, prompt and generated tokens, batch, queue, KV cache). Reward: one minus energy per token
times delay per token (energy-delay product; by Little's law the delay is everybody inside over the token
rate, queue included), each relative to its own running mean. It knows no
promises, no lengths and nothing that is to come. Ours, where the description is silent: twelve clocks
evenly spread, alpha = 0.5, ridge 1, windows without a token teach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvwatt.state import EngineSnapshot
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import Case

Floats = npt.NDArray[np.float64]
ARMS = 12
ALPHA = 0.5
FORGET = 0.01  # weight of a window in the running means
FEATURES = 7


@dataclass
class LinUcb:
    """One regression per arm; `a_inverse` (arms, features, features), `b` (arms, features)."""

    arms: int
    features: int
    a_inverse: Floats = field(init=False)
    b: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.a_inverse = np.repeat(np.eye(self.features)[None], self.arms, axis=0)
        self.b = np.zeros((self.arms, self.features))

    def choose(self, context: Floats) -> int:
        """The arm of the highest upper confidence bound."""
        theta = np.einsum("aij,aj->ai", self.a_inverse, self.b)
        width = np.sqrt(np.einsum("i,aij,j->a", context, self.a_inverse, context))
        return int(np.argmax(theta @ context + ALPHA * width))

    def learn(self, arm: int, context: Floats, reward: float) -> None:
        """Sherman-Morrison: one more row in the arm's regression."""
        pulled = self.a_inverse[arm] @ context
        self.a_inverse[arm] -= np.outer(pulled, pulled) / (1.0 + context @ pulled)
        self.b[arm] += reward * context


@dataclass
class Agft:
    """Controller; `period_s` is the window."""

    case: Case
    period_s: float = 0.3
    bandit: LinUcb = field(init=False)
    _clocks: tuple[int, ...] = field(init=False)
    _before: tuple[EngineSnapshot, float] | None = field(default=None, init=False)
    _pulled: tuple[int, Floats] | None = field(default=None, init=False)
    _means: Floats = field(default_factory=lambda: np.zeros(2), init=False)

    def __post_init__(self) -> None:
        clocks = self.case.clocks_mhz
        places = np.unique(np.linspace(0, len(clocks) - 1, ARMS).round().astype(int))
        self._clocks = tuple(clocks[i] for i in places)
        self.bandit = LinUcb(len(self._clocks), FEATURES)

    def target(self, now_s: float, plant: VirtualPlant) -> int:
        page, energy_j = plant.snapshot(), plant.energy_j
        if self._before is None:
            self._before = (page, energy_j)
            return self._clocks[-1]
        last, last_j = self._before
        self._before = (page, energy_j)
        self._reward(last, page, energy_j - last_j)
        context = self._context(last, page)
        arm = self.bandit.choose(context)
        self._pulled = (arm, context)
        return self._clocks[arm]

    def _reward(self, last: EngineSnapshot, page: EngineSnapshot, spent_j: float) -> None:
        tokens = page.generation_tokens_total - last.generation_tokens_total
        inside = page.running + page.waiting
        if self._pulled is None or tokens <= 0 or inside == 0:
            return
        costs = np.array([spent_j / tokens, inside / tokens])
        if not self._means.any():
            self._means = costs
        self._means = (1.0 - FORGET) * self._means + FORGET * costs
        self.bandit.learn(*self._pulled, 1.0 - float(np.prod(costs / self._means)))

    def _context(self, last: EngineSnapshot, page: EngineSnapshot) -> Floats:
        shape = self.case.shape
        per_s = 1.0 / self.period_s
        return np.array(
            [
                1.0,
                page.running / shape.max_num_seqs,
                page.waiting / shape.max_num_seqs,
                page.kv_usage,
                (page.prompt_lengths.count - last.prompt_lengths.count) * per_s / 10.0,
                (page.prompt_tokens_total - last.prompt_tokens_total) * per_s / 1e4,
                (page.generation_tokens_total - last.generation_tokens_total) * per_s / 1e4,
            ]
        )
