"""Structural check of a LightGBM text model before the native parser sees it.

The parser trusts its input: a child index out of range, or a cycle, would crash or hang the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

MAX_TREES = 20_000
MAX_LEAVES = 4096


class TreesError(ValueError):
    """A text model is not one that kvwatt wrote; the message names the tree and the key."""


def check_trees(text: str, features: int) -> int:
    """Number of trees in a sound single-output regression model over `features`. Raises `TreesError`."""
    head, *blocks = text.split("\nTree=")
    header = dict(_pairs(head))
    if not head.startswith("tree\n"):
        raise TreesError("not a LightGBM text model")
    for key, expected in (("num_class", "1"), ("num_tree_per_iteration", "1")):
        if header.get(key) != expected:
            raise TreesError(f"{key} must be {expected}, got {header.get(key)!r:.40}")
    if header.get("max_feature_idx") != str(features - 1):
        raise TreesError(f"max_feature_idx must be {features - 1}, got {header.get('max_feature_idx')!r:.40}")
    if not header.get("objective", "").startswith("regression"):
        raise TreesError(f"objective must be regression, got {header.get('objective')!r:.40}")
    if not 1 <= len(blocks) <= MAX_TREES:
        raise TreesError(f"must hold 1 to {MAX_TREES} trees, got {len(blocks)}")
    for number, block in enumerate(blocks):
        _check_tree(number, dict(_pairs(block.split("\nend of trees")[0])), features)
    return len(blocks)


def _pairs(block: str) -> Iterator[tuple[str, str]]:
    for line in block.splitlines():
        key, found, value = line.partition("=")
        if found:
            yield key, value


def _check_tree(number: int, tree: Mapping[str, str], features: int) -> None:
    leaves = _whole(number, tree, "num_leaves")
    if not 1 <= leaves <= MAX_LEAVES:
        raise TreesError(f"tree {number}: num_leaves must be 1 to {MAX_LEAVES}, got {leaves}")
    if _whole(number, tree, "num_cat") != 0 or tree.get("is_linear", "0") != "0":
        raise TreesError(f"tree {number}: categorical splits and linear leaves are not used here")
    if len(tree.get("leaf_value", "").split()) != leaves:
        raise TreesError(f"tree {number}: leaf_value must have {leaves} entries")
    if leaves == 1:
        return
    for key in ("threshold", "decision_type"):
        if len(tree.get(key, "").split()) != leaves - 1:
            raise TreesError(f"tree {number}: {key} must have {leaves - 1} entries")
    if not all(0 <= feature < features for feature in _wholes(number, tree, "split_feature", leaves - 1)):
        raise TreesError(f"tree {number}: split_feature must lie in 0 to {features - 1}")
    for key in ("left_child", "right_child"):
        for node, child in enumerate(_wholes(number, tree, key, leaves - 1)):
            # Nodes are numbered as they are grown: a child comes after its parent, which rules out cycles.
            if not (-leaves <= child < 0 or node < child < leaves - 1):
                raise TreesError(f"tree {number}: {key} of node {node} must not be {child}")


def _wholes(number: int, tree: Mapping[str, str], key: str, count: int) -> list[int]:
    try:
        values = [int(value) for value in tree.get(key, "").split()]
    except ValueError:
        raise TreesError(f"tree {number}: {key} must be integers") from None
    if len(values) != count:
        raise TreesError(f"tree {number}: {key} must have {count} entries, got {len(values)}")
    return values


def _whole(number: int, tree: Mapping[str, str], key: str) -> int:
    return _wholes(number, tree, key, 1)[0]
