"""LightGBM's text models, read and evaluated here: only what kvwatt itself writes is accepted.

LightGBM's own parser trusts its input: a forged text crashes the process. So a model is never handed to it.
Trees have numerical splits without missing values: left where the feature is <= the threshold.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvwatt.lattice import Floats

MAX_TREES = 20_000
MAX_LEAVES = 4096
MAX_ALL_LEAVES = 100_000
_NO_MISSING = ("0", "2")  # decision_type: numerical, missing values unknown; the default side is then unused


class TreesError(ValueError):
    """A text model is not one that kvwatt wrote; the message names the tree and the key."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Inner nodes by number, the root first. A child >= 0 is a node, another is the complement of a leaf."""

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    leaf: tuple[float, ...]

    def add_to(self, grid: Floats, axes: Sequence[Sequence[float]]) -> None:
        """Add the tree's value at every point that the ascending `axes`, one per feature, span."""
        whole = tuple((0, len(axis)) for axis in axes)
        left_to_do = [(0 if self.feature else ~0, whole)]
        while left_to_do:
            node, box = left_to_do.pop()
            if node < 0:
                grid[tuple(slice(*side) for side in box)] += self.leaf[~node]
                continue
            axis = self.feature[node]
            low, high = box[axis]
            cut = min(max(bisect_right(axes[axis], self.threshold[node]), low), high)
            for child, side in ((self.left[node], (low, cut)), (self.right[node], (cut, high))):
                if side[0] < side[1]:
                    left_to_do.append((child, (*box[:axis], side, *box[axis + 1 :])))


def grid_values(trees: Sequence[Tree], axes: Sequence[Sequence[float]]) -> Floats:
    """Sum of the trees at every point of the grid: shape as long as the axes."""
    grid = np.zeros([len(axis) for axis in axes])
    for tree in trees:
        tree.add_to(grid, axes)
    return grid


def read_trees(text: str, features: int) -> list[Tree]:
    """The trees of a sound single-output regression model over `features`. Raises `TreesError`."""
    head, *blocks = text.split("\nTree=")
    if not head.startswith("tree\n"):
        raise TreesError("not a LightGBM text model")
    header = dict(_pairs(head))
    expected = {
        "num_class": "1",
        "num_tree_per_iteration": "1",
        "max_feature_idx": str(features - 1),
        "objective": "regression",
    }
    for key, value in expected.items():
        if header.get(key) != value:
            raise TreesError(f"{key} must be {value}, got {header.get(key)!r:.40}")
    if "average_output" in head.splitlines():
        raise TreesError("average_output is not used here")
    if not 1 <= len(blocks) <= MAX_TREES:
        raise TreesError(f"must hold 1 to {MAX_TREES} trees, got {len(blocks)}")
    trees: list[Tree] = []
    leaves = 0
    for number, block in enumerate(blocks):
        trees.append(_tree(number, dict(_pairs(block.split("\nend of trees")[0])), features))
        leaves += len(trees[-1].leaf)
        if leaves > MAX_ALL_LEAVES:
            raise TreesError(f"tree {number}: more than {MAX_ALL_LEAVES} leaves in all")
    return trees


def _pairs(block: str) -> Iterator[tuple[str, str]]:
    for line in block.split("\n"):
        key, found, value = line.partition("=")
        if found:
            yield key, value


def _tree(number: int, tree: Mapping[str, str], features: int) -> Tree:
    leaves = _whole(number, tree, "num_leaves")
    if not 1 <= leaves <= MAX_LEAVES:
        raise TreesError(f"tree {number}: num_leaves must be 1 to {MAX_LEAVES}, got {leaves}")
    if _whole(number, tree, "num_cat") != 0 or tree.get("is_linear", "0") != "0":
        raise TreesError(f"tree {number}: categorical splits and linear leaves are not used here")
    leaf = _numbers(number, tree, "leaf_value", leaves)
    if leaves == 1:
        return Tree((), (), (), (), leaf)
    feature = _wholes(number, tree, "split_feature", leaves - 1)
    if not all(0 <= index < features for index in feature):
        raise TreesError(f"tree {number}: split_feature must lie in 0 to {features - 1}")
    kinds = _words(number, tree, "decision_type", leaves - 1)
    if not all(kind in _NO_MISSING for kind in kinds):
        raise TreesError(f"tree {number}: decision_type must be {' or '.join(_NO_MISSING)}")
    left, right = (_children(number, tree, key, leaves) for key in ("left_child", "right_child"))
    if len({*left, *right}) != 2 * (leaves - 1):
        raise TreesError(f"tree {number}: left_child and right_child name a node or leaf twice")
    return Tree(feature, _numbers(number, tree, "threshold", leaves - 1), left, right, leaf)


def _children(number: int, tree: Mapping[str, str], key: str, leaves: int) -> tuple[int, ...]:
    children = _wholes(number, tree, key, leaves - 1)
    for node, child in enumerate(children):
        # Nodes are numbered as they are grown: a child comes after its parent, which rules out cycles.
        if not (-leaves <= child < 0 or node < child < leaves - 1):
            raise TreesError(f"tree {number}: {key} of node {node} must not be {child}")
    return children


def _words(number: int, tree: Mapping[str, str], key: str, count: int) -> list[str]:
    words = tree.get(key, "").split()
    if len(words) != count:
        raise TreesError(f"tree {number}: {key} must have {count} entries, got {len(words)}")
    return words


def _numbers(number: int, tree: Mapping[str, str], key: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in _words(number, tree, key, count))
    except TreesError:
        raise
    except ValueError:
        raise TreesError(f"tree {number}: {key} must be numbers") from None
    if not all(map(math.isfinite, values)):
        raise TreesError(f"tree {number}: {key} must be finite")
    return values


def _wholes(number: int, tree: Mapping[str, str], key: str, count: int) -> tuple[int, ...]:
    words = _words(number, tree, key, count)
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise TreesError(f"tree {number}: {key} must be integers") from None


def _whole(number: int, tree: Mapping[str, str], key: str) -> int:
    return _wholes(number, tree, key, 1)[0]
