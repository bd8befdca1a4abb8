"""Our reading of LightGBM's text models against LightGBM itself."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest

from kvwatt.trees import MAX_ALL_LEAVES, TreesError, grid_values, read_trees

AXES = ((210.0, 900.0, 1200.5, 2520.0), (0.0, 1.0, 4.0, 64.0), (0.0, 256.0, 3000.0), (0.0, 16.0, 512.0))


def trained(seed: int, rounds: int = 30, leaves: int = 12) -> lightgbm.Booster:
    """A model of noise over features whose values lie on and between the axes."""
    draw = np.random.default_rng(seed)
    columns = [draw.choice([*axis, *np.linspace(axis[0], axis[-1], 9)], 400) for axis in AXES]
    options = {"num_leaves": leaves, "verbosity": -1, "seed": seed, "min_child_samples": 3, "num_threads": 1}
    data = lightgbm.Dataset(np.stack(columns, axis=1), draw.normal(size=400), params={"verbosity": -1})
    return lightgbm.train(options, data, rounds)


@pytest.mark.parametrize("seed", range(5))
def test_a_grid_has_the_values_that_lightgbm_predicts(seed: int) -> None:
    """Every point of the grid, those on a threshold's side among them, has LightGBM's own value."""
    booster = trained(seed)
    points = np.stack([side.ravel() for side in np.meshgrid(*AXES, indexing="ij")], axis=1)
    ours = grid_values(read_trees(booster.model_to_string(), 4), AXES)
    assert ours.shape == tuple(map(len, AXES)) and len(np.unique(ours)) > 20
    np.testing.assert_allclose(ours.ravel(), booster.predict(points), rtol=1e-12, atol=1e-15)


def test_a_threshold_itself_lies_on_the_left() -> None:
    """A feature that equals its threshold goes left, as in LightGBM."""
    booster = trained(0)
    tree = read_trees(booster.model_to_string(), 4)[0]
    axes = list(AXES)
    axes[tree.feature[0]] = tuple(np.nextafter(tree.threshold[0], [-np.inf, tree.threshold[0], np.inf]))
    points = np.stack([side.ravel() for side in np.meshgrid(*axes, indexing="ij")], axis=1)
    ours = grid_values(read_trees(booster.model_to_string(), 4), axes)
    np.testing.assert_allclose(ours.ravel(), booster.predict(points), rtol=1e-12, atol=1e-15)


HEAD = "tree\nnum_class=1\nnum_tree_per_iteration=1\nmax_feature_idx=3\nobjective=regression\n"


def block(number: int, **changed: str) -> str:
    """A tree of two splits."""
    fields = {
        "num_leaves": "3",
        "num_cat": "0",
        "split_feature": "0 1",
        "threshold": "900 4",
        "decision_type": "2 2",
        "left_child": "1 -1",
        "right_child": "-3 -2",
        "leaf_value": "1 2 3",
    }
    return f"\nTree={number}\n" + "\n".join(f"{key}={value}" for key, value in (fields | changed).items())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"left_child": "1 1"}, "left_child of node 1"),
        ({"right_child": "1 -2"}, "twice"),
        ({"right_child": "-1 -2"}, "twice"),
        ({"right_child": "-4 -2"}, "right_child of node 0"),
        ({"decision_type": "1 2"}, "decision_type"),
        ({"decision_type": "10 2"}, "decision_type"),
        ({"threshold": "nan 4"}, "threshold must be finite"),
        ({"leaf_value": "1 2 inf"}, "leaf_value must be finite"),
        ({"leaf_value": "1 2"}, "leaf_value must have 3"),
        ({"split_feature": "0 4"}, "split_feature"),
        ({"num_leaves": "9" * 5000}, "num_leaves"),
        ({"num_cat": "1"}, "categorical"),
        ({"is_linear": "1"}, "linear"),
    ],
)
def test_a_forged_tree_is_refused_by_its_key(changed: dict[str, str], told: str) -> None:
    """Cycles, shared nodes, leaves that are not there and values that are no numbers never count."""
    assert grid_values(read_trees(HEAD + block(0), 4), AXES).max() == 3.0
    with pytest.raises(TreesError, match=told):
        read_trees(HEAD + block(0, **changed), 4)


def chain(number: int, inner: int) -> str:
    """A tree as deep as it has splits."""
    return block(
        number,
        num_leaves=str(inner + 1),
        split_feature=" ".join("0" for _ in range(inner)),
        threshold=" ".join(str(9000 - i) for i in range(inner)),
        decision_type=" ".join("2" for _ in range(inner)),
        left_child=" ".join(str(i + 1) for i in range(inner - 1)) + " -1",
        right_child=" ".join(str(-2 - i) for i in range(inner)),
        leaf_value=" ".join("1" for _ in range(inner + 1)),
    )


def test_more_leaves_than_can_be_read_in_seconds_are_refused() -> None:
    """A text that would keep the daemon busy for hours is refused before it is evaluated."""
    trees = MAX_ALL_LEAVES // 4000 + 1
    with pytest.raises(TreesError, match="leaves in all"):
        read_trees(HEAD + "".join(chain(number, 4000) for number in range(trees)), 4)


def test_a_deep_chain_is_evaluated_without_recursion() -> None:
    """The deepest tree that is accepted costs no stack."""
    assert (grid_values(read_trees(HEAD + chain(0, 4000), 4), AXES) == 1.0).all()
