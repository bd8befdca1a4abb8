"""How lengths move from minute to minute, from the counters of the members' pages.

Traffic that moves more slowly than queues is a mixture, not a wider distribution (`MixedQueue`): minutes of
long prompts break a promise that the mean of the hour keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import sqrt

import numpy as np

from kvwatt.state import EngineSnapshot
from kvwattd.pool.capacity_worker import Group

MINUTE_S = 60.0
KEPT, LEAST = 720, 30  # minutes
LEAST_REQUESTS = 5.0  # of a minute that counts
GROUPS = 3


class Minutes:
    """Call `observe` with the newest trusted page of every member; what cannot be seen is left out."""

    def __init__(self) -> None:
        self._begun: tuple[float, dict[str, EngineSnapshot]] | None = None
        self._rows: deque[tuple[float, float, float]] = deque(maxlen=KEPT)  # requests, prompt, output tokens

    def observe(self, now_s: float, pages: Mapping[str, EngineSnapshot]) -> None:
        """Closes a minute that is over."""
        if self._begun is None:
            self._begun = now_s, dict(pages)
            return
        since_s, before = self._begun
        if now_s - since_s < MINUTE_S:
            return
        self._begun = now_s, dict(pages)
        both = [(before[name], page) for name, page in pages.items() if name in before]
        made = np.array([_between(*pair) for pair in both if _same_run(*pair)]).reshape(-1, 3).sum(axis=0)
        if made[0] >= LEAST_REQUESTS:
            self._rows.append((float(made[0]), float(made[1]), float(made[2])))

    def groups(self, prompt_variation: float) -> tuple[Group, ...]:
        """GROUPS of minutes by their mean prompt, as factors of the overall means; none while few are known.

        `prompt_variation`: standard deviation over mean of single prompts. Means of few requests differ by
        chance: what chance explains of their spread is taken off."""
        if len(self._rows) < LEAST:
            return ()
        requests, prompts, outputs = np.array(self._rows).T
        mean = prompts / requests / (prompts.sum() / requests.sum())
        by_chance = prompt_variation**2 * float(np.mean(1.0 / requests))
        spread = float(mean.var())
        true = sqrt(max(1.0 - by_chance / spread, 0.0)) if spread > 0.0 else 0.0
        found = []
        for part in np.array_split(np.argsort(mean, kind="stable"), GROUPS):
            count = requests[part].sum()
            prompt = prompts[part].sum() / count / (prompts.sum() / requests.sum())
            output = outputs[part].sum() / count / max(outputs.sum() / requests.sum(), 1e-9)
            factors = (1.0 + true * (float(factor) - 1.0) for factor in (prompt, output))
            found.append(Group(len(part) / len(mean), *factors))
        return tuple(found)


def _same_run(before: EngineSnapshot, page: EngineSnapshot) -> bool:
    return all(now >= then for then, now in zip(_totals(before), _totals(page), strict=True))


def _between(before: EngineSnapshot, page: EngineSnapshot) -> tuple[float, ...]:
    return tuple(now - then for then, now in zip(_totals(before), _totals(page), strict=True))


def _totals(page: EngineSnapshot) -> tuple[float, float, float]:
    return page.requests_finished_total, page.prompt_tokens_total, page.generation_tokens_total
