"""Versions on disk: which one serves, and that a damaged one never does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvwatt import artifact
from kvwatt.throughput import StepModel
from kvwattd.model_versions import KEPT, Record, VersionError, VersionStore


@pytest.fixture
def store(ship: Callable[[Path], Path], tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "models" / "chat", ship(tmp_path / "model"))


@pytest.fixture
def add(store: VersionStore, shipped: StepModel, tmp_path: Path) -> Callable[[], int | None]:
    """Adds a refitted version of whatever serves."""

    def make() -> int | None:
        parent = store.serving().number
        work = store.folder / "job" / "model"
        artifact.save(replace(shipped, upper_factor=1.2), work)
        return store.add(
            work, Record(base_sha256=store.base_sha256(), parent=parent, trained_through=parent + 5)
        )

    return make


def states(store: VersionStore) -> dict[int, str]:
    return {version.number: version.state for version in store.versions()}


def test_without_versions_the_shipped_model_serves(store: VersionStore) -> None:
    """A flat artifact folder is all that is needed."""
    assert store.serving().number == 0 and store.serving().path == store.shipped
    assert not store.folder.exists()


def test_a_new_version_serves_and_survives_a_restart(
    store: VersionStore, add: Callable[[], int | None]
) -> None:
    """The pointer is on disk; the shipped artifact is untouched."""
    before = sorted(store.shipped.iterdir())
    assert (add(), add()) == (1, 2)
    again = VersionStore(store.folder, store.shipped)
    assert again.serving().number == 2 and again.serving().record.trained_through == 6
    assert sorted(store.shipped.iterdir()) == before
    assert states(again) == {0: "sound", 1: "sound", 2: "sound"}


def test_rollback_goes_back_one_by_one_and_holds(store: VersionStore, add: Callable[[], int | None]) -> None:
    """Without a number the version before; while held no refit serves; released, the next one does."""
    add(), add()
    store.roll_back(None, True)
    assert store.serving().number == 1
    assert add() is None
    store.roll_back(None, True)
    assert store.serving().number == 0
    with pytest.raises(VersionError, match="no version before"):
        store.roll_back(None, True)
    store.roll_back(2, False)
    assert store.serving().number == 2 and add() == 3


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.STEP_TREES, artifact.POWER_TREES])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_version_never_serves(
    store: VersionStore, add: Callable[[], int | None], name: str, damage: str
) -> None:
    """Cut short, changed or missing: the version before serves, and none can go back to it."""
    add(), add()
    path = store.folder / "versions" / "2" / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data.replace(b"0", b"x", 1))
    assert store.serving().number == 1
    assert states(store)[2] == "damaged"
    with pytest.raises(VersionError, match="not a sound version"):
        store.roll_back(2, True)
    path.write_bytes(data)
    assert store.serving().number == 2


def test_a_version_without_its_record_is_damaged(store: VersionStore, add: Callable[[], int | None]) -> None:
    """What is not known to be of this shipped model does not serve."""
    add()
    (store.folder / "versions" / "1" / "version.json").unlink()
    assert store.serving().number == 0


@pytest.mark.parametrize(
    "content", ["", "{", "7", '{"number": -1}', '{"number": 1, "held": false}', '{"number": 99, "more": 1}']
)
def test_a_pointer_that_cannot_be_read_means_the_shipped_model(
    store: VersionStore, add: Callable[[], int | None], content: str
) -> None:
    """Empty, cut, of another layout or another shipped model."""
    add()
    (store.folder / "current").write_text(content)
    assert store.serving().number == 0


def test_another_shipped_model_ends_the_versions_of_the_old_one(
    store: VersionStore, add: Callable[[], int | None], shipped: StepModel
) -> None:
    """A newly trained model serves at once; what was refitted from the old one does not come back."""
    add()
    artifact.save(replace(shipped, upper_factor=1.3), store.shipped)
    assert store.serving().number == 0
    assert states(store) == {0: "sound", 1: "other_base"}
    with pytest.raises(VersionError):
        store.roll_back(1, False)
    assert add() == 2 and store.serving().number == 2


def test_a_refit_that_was_overtaken_is_dropped(store: VersionStore, shipped: StepModel) -> None:
    """A champion or a shipped model that changed meanwhile was not what the challenger beat."""
    for record in (
        Record(base_sha256="of another", parent=0),
        Record(base_sha256=store.base_sha256(), parent=4),
    ):
        work = store.folder / "job" / "model"
        artifact.save(shipped, work)
        assert store.add(work, record) is None
    assert states(store) == {0: "sound"}


def test_a_refit_that_is_not_sound_is_refused(store: VersionStore, shipped: StepModel) -> None:
    """What the worker left is checked before it is taken over."""
    work = store.folder / "job" / "model"
    artifact.save(shipped, work)
    (work / artifact.STEP_TREES).write_text("tree\n")
    with pytest.raises(VersionError, match="not sound"):
        store.add(work, Record(base_sha256=store.base_sha256()))
    assert store.serving().number == 0


def test_old_versions_are_removed_but_never_the_one_in_use(
    store: VersionStore, add: Callable[[], int | None]
) -> None:
    """A bounded number is kept, the newest."""
    for _ in range(KEPT + 3):
        add()
    assert list(states(store)) == [0, *range(4, KEPT + 4)]
    assert store.serving().number == KEPT + 3


def test_a_version_that_cannot_be_used_is_passed_over_until_it_changes(
    store: VersionStore, add: Callable[[], int | None]
) -> None:
    """Whole files may still not fit this GPU: the daemon condemns such a version."""
    add()
    store.serving()
    store.condemn(1, "trained on another GPU")
    assert store.serving().number == 0 and states(store)[1] == "damaged"
    path = store.folder / "versions" / "1" / artifact.MANIFEST
    document = json.loads(path.read_text())
    shutil.copy(path, path.with_suffix(".bak"))
    path.write_text(json.dumps(document))
    assert store.serving().number == 1
