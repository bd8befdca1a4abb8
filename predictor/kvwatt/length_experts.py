"""How long a memory for a drift of lengths? Several are kept, and believed as far as they foresaw.

Nobody can know beforehand whether lengths stand still (then a long memory has less noise) or move (then a
short one is less wrong). Each memory moves the classes' curves by its own newest requests (length_recent.py);
curves are averaged with the weights of Bayes' rule on the lengths of requests that finished since. In log
loss such an average loses at most log(n) more than the best of n memories over any stretch (Vovk, COLT 1990);
with a share 1 / (t + 1) of the weight spread anew at request t it also follows the best memory as that
changes (Herbster and Warmuth, Machine Learning 32, 1998), and no rate is to be chosen. Before anything was
judged the last memory speaks alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvwatt.length_curves import CELLS, Curves, Floats, Ints, cell_of, curves_of, hazards_of
from kvwatt.length_memory import Memory
from kvwatt.length_recent import RecentOptions, corrected
from kvwatt.length_tree import Classes

Options = RecentOptions | None  # None: the classes as they are

MEMORIES: tuple[Options, ...] = (*(RecentOptions(requests) for requests in (125.0, 500.0, 2000.0)), None)
_LEAST = 1e-9  # probability of a length that a curve excludes


class Experts:
    """The classes' curves as each memory moves them; owns the memories' weights."""

    def __init__(self, options: Sequence[Options]) -> None:
        if not options:
            raise ValueError("options must name one memory or more, got none")
        self._options = tuple(options)
        self.weights = np.eye(len(options))[-1]
        self._judged = 0
        self._survival: Floats = np.ones((len(options), 1, CELLS + 1))

    def judge(self, row: Ints, tokens: Floats) -> None:
        """Requests of these rows ended by themselves, before the curves learn of them."""
        cell = cell_of(tokens)
        chance = self._survival[:, row, cell] - self._survival[:, row, cell + 1]
        for each in np.maximum(chance, _LEAST).T:
            self._judged += 1
            after = self.weights * each
            spread = 1.0 / (self._judged + 1)
            self.weights = after / after.sum() * (1.0 - spread) + spread / len(after)

    def moved(self, classes: Classes, held: Memory) -> Curves:
        """The curves of `classes` as the memories together move them by what is held."""
        self._survival = np.array([_moved(classes, held, option) for option in self._options])
        return curves_of(hazards_of(np.tensordot(self.weights, self._survival, 1)))


def _moved(classes: Classes, held: Memory, option: Options) -> Floats:
    """Survival rows of `classes` as one memory moves them."""
    if option is None:
        return classes.curves.survival_rows
    newest = held.sample(option.memory_requests, option.reach_requests)
    row = classes.classify(newest.prompt, newest.limit)
    return corrected(classes.curves, row, newest, option).survival_rows
