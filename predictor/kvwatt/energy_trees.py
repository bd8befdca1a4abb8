"""Trees over rows of features: the sum of a boosted model at n points, numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvwatt.lattice import Floats
from kvwatt.trees import Tree


def row_values(trees: Sequence[Tree], features: Floats) -> Floats:
    """Sum of the trees at each row of `features` (n, k): shape (n,). Left where the feature is <= the
    threshold, as LightGBM does without missing values."""
    total = np.zeros(len(features))
    for tree in trees:
        total += _one(tree, features)
    return total


def _one(tree: Tree, features: Floats) -> Floats:
    leaves = np.array(tree.leaf)
    if not tree.feature:
        return np.full(len(features), leaves[0])
    feature, threshold = np.array(tree.feature), np.array(tree.threshold)
    children = np.array([tree.left, tree.right])
    node = np.zeros(len(features), dtype=np.intp)
    inside = np.arange(len(features))
    while len(inside):
        at = node[inside]
        right = features[inside, feature[at]] > threshold[at]
        node[inside] = children[right.astype(np.intp), at]
        inside = inside[node[inside] >= 0]
    return np.asarray(leaves[~node])
