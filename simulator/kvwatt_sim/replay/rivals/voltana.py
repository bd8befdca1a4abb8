"""VoltanaLLM-like: the lowest clock whose predicted latency of the current state is within the SLO.

From the description at hand (a fork of SGLang that looks the clock up per iteration): a decode step's time
is predicted from batch and KV cache and held against the TBT limit; prompt work is held against what is
left of the TTFT limit; when anything waits, the top clock. It looks at the state as it is: neither growing
KV caches, nor E2E, nor requests to come. Like ours: the server does prefill and decode on the same GPU (the
source splits them), and it waits for a switch to settle before the next. In its favour: the plant's own law
instead of a fitted table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import numpy as np

from kvwatt_sim.replay import laws
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import Case


@dataclass
class Voltana:
    """Asked about once per iteration; `settle_s` between two switches."""

    case: Case
    period_s: float = 0.05
    settle_s: float = 0.2
    _held_mhz: int | None = field(default=None, init=False)
    _since_s: float = field(default=-inf, init=False)

    def target(self, now_s: float, plant: VirtualPlant) -> int:
        wanted = self.wanted(now_s, plant)
        if self._held_mhz is None or (wanted != self._held_mhz and now_s - self._since_s >= self.settle_s):
            self._held_mhz, self._since_s = wanted, now_s
        return self._held_mhz

    def wanted(self, now_s: float, plant: VirtualPlant) -> int:
        """The clock for the state at this moment."""
        clocks = self.case.clocks_mhz
        if plant.waiting:
            return clocks[-1]
        requests = plant.request_states()
        prompts = [r for r in requests if r.first_token_s is None]
        decoding = [r for r in requests if r.first_token_s is not None]
        kept = np.ones(len(clocks), dtype=np.bool_)
        mhz = np.array(clocks, dtype=np.float64)
        batch = np.full(1, float(len(decoding)))
        kv = np.full(1, float(sum(r.prompt_tokens + r.output_tokens for r in decoding)))
        slo, none = self.case.promises.slo, np.zeros(1)
        if slo.tbt is not None and decoding:
            kept &= laws.work(self.case.card, mhz, batch, kv, none, none).time_s <= slo.tbt.limit_s
        if slo.ttft is not None and prompts:
            tokens = np.full(1, float(sum(r.prompt_tokens for r in prompts)))
            pairs = np.full(1, sum(r.prompt_tokens**2 / 2.0 for r in prompts))
            left_s = slo.ttft.limit_s - (now_s - min(r.arrival_s for r in prompts))
            kept &= laws.work(self.case.card, mhz, batch, kv, tokens, pairs).time_s <= left_s
        return clocks[int(np.argmax(kept))] if kept.any() else clocks[-1]
