"""Classes of requests whose lengths differ: a tree over prompt length and max_tokens.

A split is made where the hazards of the two sides explain the lengths better than common ones, by more
than chance would: twice the gain in log likelihood is chi-squared with one degree of freedom per cell.
Every node's hazards are shrunk towards its parent's, cell by cell, by `shrink_requests` at risk
(a beta prior), so a thin class falls back on the pooled curve exactly where it knows little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.length_curves import CELLS, WIDTHS, Curves, Floats, Ints, cell_of, curves_of

_COARSE = 16  # cells of equal mass in which splits are judged
_CUTS = 256  # candidate cuts of a feature
_ROOT_PRIOR = 0.5  # requests at risk with the pooled constant hazard: rules only beyond what was seen


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """`caution`: standard deviations of chance that a split must exceed."""

    shrink_requests: float = 10.0
    min_leaf_requests: float = 40.0
    caution: float = 8.0
    max_leaves: int = 32


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Finished requests; `ended` False: cut off, the length is only known to be at least `tokens`."""

    prompt: Floats
    limit: Floats  # max_tokens, inf where none
    tokens: Floats
    ended: npt.NDArray[np.bool_]
    weight: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Cuts of both features, the class of each (prompt, limit) bin, and a curve per class; the last row
    of `curves` is the pooled one."""

    prompt_cuts: Floats
    limit_cuts: Floats
    class_of_bin: Ints
    curves: Curves

    @property
    def pooled(self) -> int:
        return self.curves.rows - 1

    def classify(self, prompt: Floats, limit: Floats) -> Ints:
        """Class of each request; -1 limits do not exist: inf stands for none."""
        place = _bins(self.prompt_cuts, prompt)
        if len(self.limit_cuts):
            place = place * self.class_of_bin.shape[1] + _bins(self.limit_cuts, limit)
        return self.class_of_bin.take(place)


def fit_classes(sample: Sample, options: TreeOptions, pooled: tuple[Floats, Floats] | None = None) -> Classes:
    """Grow the tree on a sample. `pooled`: requests that ended in each cell and that came to it, both
    (CELLS,), known from elsewhere; the root leans on them. Needed where the sample is empty."""
    cuts = (_cuts(sample.prompt), _cuts(sample.limit))
    bins = (_bins(cuts[0], sample.prompt), _bins(cuts[1], sample.limit))
    fine = cell_of(sample.tokens)
    coarse = np.searchsorted(_coarse_cells(fine, sample), fine, side="right")
    parent, strength = _root_prior(sample, pooled)
    if pooled is not None:
        parent, strength = _shrunk(pooled, parent, strength), options.shrink_requests
    root = _shrunk(_risk(fine, sample, slice(None), CELLS), parent, strength)
    grower = _Grower(sample, bins, fine, coarse, options, np.zeros((len(cuts[0]) + 1, len(cuts[1]) + 1), int))
    grower.grow(root)
    return Classes(*cuts, grower.class_of_bin, curves_of(np.array([*grower.leaves, root])))


class _Grower:
    """Depth first: nodes do not depend on each other."""

    def __init__(
        self,
        sample: Sample,
        bins: tuple[Ints, Ints],
        fine: Ints,
        coarse: Ints,
        options: TreeOptions,
        class_of_bin: npt.NDArray[np.int_],
    ) -> None:
        self._sample, self._bins, self._fine, self._coarse = sample, bins, fine, coarse
        self._options = options
        self.class_of_bin: Ints = class_of_bin.astype(np.intp)
        self.leaves: list[Floats] = []

    def grow(self, root: Floats) -> None:
        everything = np.arange(len(self._fine))
        spans = tuple((0, size) for size in self.class_of_bin.shape)
        nodes = [(everything, (spans[0], spans[1]), root)]
        while nodes:
            members, box, hazards = nodes.pop()
            room = len(self.leaves) + len(nodes) + 2 <= self._options.max_leaves
            cut = self._best_cut(members) if room else None
            if cut is None:
                (a, b), (c, d) = box
                self.class_of_bin[a:b, c:d] = len(self.leaves)
                self.leaves.append(hazards)
                continue
            feature, at = cut
            below = self._bins[feature][members] < at
            for side, part in ((0, members[below]), (1, members[~below])):
                risk = _risk(self._fine, self._sample, part, CELLS)
                shrunk = _shrunk(risk, hazards, self._options.shrink_requests)
                nodes.append((part, _half(box, feature, at, side), shrunk))

    def _best_cut(self, members: Ints) -> tuple[int, int] | None:
        options = self._options
        best, chosen = 0.0, None
        for feature in (0, 1):
            gain, at = self._gain(members, feature)
            if gain > best:
                best, chosen = gain, (feature, at)
        freedom = _COARSE
        chance = freedom / 2 + options.caution * math.sqrt(freedom / 2)
        return chosen if best > chance else None

    def _gain(self, members: Ints, feature: int) -> tuple[float, int]:
        """Best gain in log likelihood of a cut of one feature, and the first bin above it."""
        size = self.class_of_bin.shape[feature]
        if size < 2:
            return 0.0, 0
        bins = self._bins[feature][members]
        ended, risk = _risk_by_bin(bins, size, self._coarse[members], self._sample, members)
        left = np.cumsum(ended, axis=0)[:-1], np.cumsum(risk, axis=0)[:-1]
        whole = ended.sum(axis=0), risk.sum(axis=0)
        right = whole[0] - left[0], whole[1] - left[1]
        gain = _likelihood(*left) + _likelihood(*right) - _likelihood(*whole)
        enough = np.minimum(left[1][:, 0], right[1][:, 0]) >= self._options.min_leaf_requests
        gain = np.where(enough, gain, 0.0)
        at = int(np.argmax(gain))
        return float(gain[at]), at + 1


def _half(
    box: tuple[tuple[int, int], tuple[int, int]], feature: int, at: int, side: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    low, high = box[feature]
    part = (at, high) if side else (low, at)
    return (part, box[1]) if feature == 0 else (box[0], part)


def _cuts(values: Floats) -> Floats:
    """Candidate cuts: quantiles of the distinct finite values, midway between neighbours."""
    levels = np.unique(values)
    if len(levels) > _CUTS:
        levels = np.unique(np.quantile(values, np.linspace(0.0, 1.0, _CUTS + 1), method="lower"))
    below, above = levels[:-1], levels[1:]
    return np.asarray(
        np.where(np.isfinite(above), (below + np.where(np.isfinite(above), above, 0)) / 2, below)
    )


def _bins(cuts: Floats, values: Floats) -> Ints:
    return cuts.searchsorted(values, side="left")


def _coarse_cells(fine: Ints, sample: Sample) -> Ints:
    """First fine cell of every coarse cell but the first: equal shares of those that ended."""
    mass = np.bincount(fine, sample.weight * sample.ended, CELLS)
    shares = np.cumsum(mass) / max(mass.sum(), 1e-12)
    return np.unique(np.searchsorted(shares, np.arange(1, _COARSE) / _COARSE) + 1)


def _risk(cells: Ints, sample: Sample, members: Ints | slice, size: int) -> tuple[Floats, Floats]:
    """Weight that ended in each cell and weight at risk there (Kaplan-Meier)."""
    cells, weight = cells[members], sample.weight[members]
    ended: Floats = np.bincount(cells, weight * sample.ended[members], size).astype(np.float64)
    cut = np.bincount(cells, weight * ~sample.ended[members], size)
    # Who was cut off in a cell had outlived the ones before and says nothing about this one.
    reached = np.cumsum((ended + cut)[::-1])[::-1]
    return ended, reached - cut


def _risk_by_bin(bins: Ints, size: int, cells: Ints, sample: Sample, members: Ints) -> tuple[Floats, Floats]:
    weight, gone = sample.weight[members], sample.ended[members]
    flat = bins * _COARSE + cells
    ended: Floats = np.bincount(flat, weight * gone, size * _COARSE).astype(np.float64)
    ended = ended.reshape(size, _COARSE)
    cut = np.bincount(flat, weight * ~gone, size * _COARSE).reshape(size, _COARSE)
    reached = np.cumsum((ended + cut)[:, ::-1], axis=1)[:, ::-1]
    return ended, reached - cut


def _likelihood(ended: Floats, risk: Floats) -> Floats:
    """Log likelihood of hazards fitted per cell, summed over the last axis."""
    stay = np.maximum(risk - ended, 0.0)
    total = np.maximum(risk, 1e-12)
    terms = ended * np.log(np.maximum(ended, 1e-12) / total) + stay * np.log(np.maximum(stay, 1e-12) / total)
    return np.asarray(terms.sum(axis=-1))


def _shrunk(risk: tuple[Floats, Floats], prior: Floats, requests: float) -> Floats:
    ended, reached = risk
    return np.asarray((ended + requests * prior) / (reached + requests))


def _root_prior(sample: Sample, pooled: tuple[Floats, Floats] | None) -> tuple[Floats, float]:
    """A constant hazard per token with the observed rate of endings."""
    tokens, ended = float(sample.weight @ sample.tokens), float(sample.weight @ sample.ended)
    if pooled is not None:
        tokens, ended = tokens + float(pooled[1] @ WIDTHS), ended + float(pooled[0].sum())
    per_token = max(ended, _ROOT_PRIOR) / max(tokens, 1.0)
    return np.asarray(1.0 - np.exp(-WIDTHS * min(per_token, 10.0))), _ROOT_PRIOR
