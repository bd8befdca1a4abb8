"""Saving, loading, caching and refusing model artifacts."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_world import CLOCKS, random_loads

from kvwatt import artifact
from kvwatt.artifact import ArtifactError
from kvwatt.state import EngineShape
from kvwatt.table_cache import write_table
from kvwatt.throughput import StepModel
from kvwatt.trees import TreesError, read_trees


@pytest.fixture
def saved(model: StepModel, tmp_path: Path) -> Path:
    artifact.save(model, tmp_path / "model")
    return tmp_path / "model"


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / artifact.MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_loaded_model_predicts_the_same(model: StepModel, saved: Path) -> None:
    """Nothing is lost between saving and loading, and no pickle is among the files."""
    loaded = artifact.load(saved)
    clocks = np.array(CLOCKS, dtype=float)
    loads = random_loads(21, 50)
    assert np.allclose(loaded.step_table(clocks, *loads), model.step_table(clocks, *loads), rtol=1e-12)
    assert np.allclose(loaded.power_table(clocks, *loads), model.power_table(clocks, *loads), rtol=1e-12)
    assert loaded.manifest == model.manifest
    assert sorted(path.name for path in saved.iterdir()) == [
        "manifest.json",
        "model.power.txt",
        "model.step.txt",
    ]


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.STEP_TREES, artifact.POWER_TREES])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    """Each of the three files is needed."""
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        artifact.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=99), "schema_version"),
        (lambda d: d.update(features=["clock"]), "features"),
        (lambda d: d.pop("hardware"), "hardware"),
        (lambda d: d.update(tp=0), "tp"),
        (lambda d: d.update(rows=True), "rows"),
        (lambda d: d["ranges"].update(clock_mhz=[2000, 600]), r"ranges\.clock_mhz"),
        (lambda d: d["ranges"].update(kv_tokens=[0, float("nan")]), "kv_tokens"),
        (lambda d: d["errors"].update(fold_ips_r2="good"), "fold_ips_r2"),
        (lambda d: d.update(upper_factor=0.5), "upper_factor"),
        (lambda d: d.update(step_prior=[1.0]), "step_prior"),
        (lambda d: d["step_prior"].__setitem__(0, -1.0), "step_prior"),
        (lambda d: d.update(power_prior=[1.0]), "power_prior"),
        (lambda d: d.update(reference_mhz=0), "reference_mhz|power_prior"),
        (lambda d: d.update(idle_w=[-5.0] * len(d["idle_w"])), "idle_w"),
        (lambda d: d["step_axes"].update(batch=[4, 1]), r"step_axes\.batch"),
        (lambda d: d.update(power_axes=None), "power_axes"),
        (lambda d: d.update(step_sha256="0" * 64), "SHA-256"),
    ],
)
def test_a_bad_manifest_names_the_key(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Every field is checked; the error tells which one and where."""
    edit(saved, change)
    with pytest.raises(ArtifactError, match=message):
        artifact.load(saved)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"x" * (1 << 21)])
def test_garbage_instead_of_a_manifest_is_refused(saved: Path, content: bytes) -> None:
    """Empty, truncated, deeply nested, binary or huge files are errors, not crashes."""
    (saved / artifact.MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match="manifest"):
        artifact.load(saved)


def test_changed_trees_are_refused(saved: Path) -> None:
    """A text model that is not the one the manifest was written with is not used."""
    path = saved / artifact.STEP_TREES
    path.write_text(path.read_text().replace("Tree=3", "Tree=4", 1))
    with pytest.raises(ArtifactError, match="SHA-256"):
        artifact.load(saved)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tree\n", "trie\n", "not a LightGBM"),
        ("num_class=1", "num_class=7", "num_class"),
        ("max_feature_idx=3", "max_feature_idx=9", "max_feature_idx"),
        ("\nsplit_feature=", "\nsplit_feature=9 ", "split_feature"),
        ("\nleft_child=", "\nleft_child=0 ", "left_child"),
        ("\nleft_child=", "\nleft_child=x ", "left_child"),
        ("\nleaf_value=", "\nleaf_value=1 ", "leaf_value"),
        ("\nnum_leaves=", "\nnum_leaves=9", "leaf_value|num_leaves"),
        ("\nnum_cat=0", "\nnum_cat=1", "categorical"),
    ],
)
def test_hostile_trees_are_refused(saved: Path, old: str, new: str, message: str) -> None:
    """Even with a matching hash, a text that kvwatt would not write is refused."""
    path = saved / artifact.STEP_TREES
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(saved, lambda document: document.update(step_sha256=digest))
    with pytest.raises(ArtifactError, match=message):
        artifact.load(saved)


def test_a_cycle_of_nodes_is_found(model: StepModel) -> None:
    """A child must come after its parent."""
    head, found, tree = model.step_trees.partition("\nright_child=")
    children = tree.split("\n", 1)[0].split()
    children[-1] = "0"
    with pytest.raises(TreesError, match="right_child"):
        read_trees(head + found + " ".join(children) + "\n" + tree.split("\n", 1)[1], features=4)


def test_the_cache_gives_the_same_table_and_needs_no_lightgbm(saved: Path, shape: EngineShape) -> None:
    """A second load reads the cached table; LightGBM and SciPy stay unimported in a fresh process."""
    clocks = tuple(CLOCKS)
    built = artifact.load_compiled(saved, clocks, shape)
    cached = artifact.load_compiled(saved, clocks, shape)
    loads = random_loads(22, 20)
    assert np.array_equal(built.step_time_s(*loads), cached.step_time_s(*loads))
    assert len(list(saved.glob("compiled-*"))) == 1
    program = (
        "import sys; from pathlib import Path; from kvwatt import artifact;"
        "from kvwatt.state import EngineShape;"
        f"artifact.load_compiled(Path({str(saved)!r}), {clocks}, EngineShape(16, 20001, 128, 2048));"
        "sys.exit(any(name in sys.modules for name in ('lightgbm', 'scipy', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_other_clocks_or_shapes_get_their_own_table(saved: Path, shape: EngineShape) -> None:
    """The cache key covers what the table depends on."""
    artifact.load_compiled(saved, (600, 800), shape)
    assert artifact.load_compiled(saved, (600, 1000), shape).clocks_mhz == (600, 1000)
    wider = EngineShape(16, 20_001, 64, 2048)
    assert artifact.load_compiled(saved, (600, 800), wider).axes[0][-1] == 64
    assert len(list(saved.glob("compiled-*"))) == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x04."])
def test_a_damaged_cache_is_built_anew(saved: Path, shape: EngineShape, content: bytes) -> None:
    """What the cache holds is checked; damage costs time, not correctness."""
    good = artifact.load_compiled(saved, (600, 800), shape)
    (path,) = saved.glob("compiled-*")
    path.write_bytes(content)
    again = artifact.load_compiled(saved, (600, 800), shape)
    assert np.array_equal(good.step_s, again.step_s)


def test_a_cache_with_nan_or_wrong_shape_is_not_used(saved: Path, shape: EngineShape) -> None:
    """A cached table that is inconsistent with itself is replaced."""
    good = artifact.load_compiled(saved, (600, 800), shape)
    (path,) = saved.glob("compiled-*")
    write_table(path, replace(good, step_s=np.full_like(good.step_s, np.nan)))
    assert np.array_equal(artifact.load_compiled(saved, (600, 800), shape).step_s, good.step_s)


def test_saving_again_drops_tables_of_the_old_model(
    model: StepModel, saved: Path, shape: EngineShape
) -> None:
    """A replaced artifact leaves no stale cache behind."""
    artifact.load_compiled(saved, (600, 800), shape)
    artifact.save(model, saved)
    assert not list(saved.glob("compiled-*"))
