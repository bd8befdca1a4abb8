"""The demonstration's step-time model: profiled on the plant's laws, trained, kept in the cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from kvwatt import (
    artifact,
    energy,
    fitting,
    lattice,
    manifest,
    prior,
    profiles,
    throughput,
    training,
    trees,
)
from kvwatt.artifact import ArtifactError
from kvwatt.profiles import table_of
from kvwatt.training import Origin, train
from kvwatt_sim import gpu, virtual_profile
from kvwatt_sim.cards import Card
from kvwatt_sim.replay.scenario import clocks

SEED = 0
TRAINERS = (artifact, energy, fitting, lattice, manifest, prior, profiles, throughput, training, trees)
FOLDS = 3  # enough for the bound on the error; more would only make the first run wait


def cached_model(card: Card, cache: Path | None = None) -> Path:
    """Folder of the trained artifact for this card and version; trains when there is none."""
    folder = (cache or cache_dir()) / f"model-{card.name}-{_key(card)}"
    try:
        artifact.load_manifest(folder)
    except ArtifactError:
        _train_into(card, folder)
    return folder


def is_cached(card: Card, cache: Path | None = None) -> bool:
    """Whether `cached_model` would return at once."""
    return ((cache or cache_dir()) / f"model-{card.name}-{_key(card)}").is_dir()


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/kvwatt`, by default `~/.cache/kvwatt`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvwatt"


def _key(card: Card) -> str:
    """Changes with the card's numbers, with kvwatt's version and with the code that profiles and trains."""
    parts = (version("kvwatt"), card.gpu_name, card.step, card.power, _clocks(card), FOLDS, SEED)
    digest = hashlib.sha256(repr(parts).encode())
    for module in (*TRAINERS, virtual_profile, gpu):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _clocks(card: Card) -> tuple[int, ...]:
    """Profiled clocks: the daemon stays within them."""
    return virtual_profile.spread(clocks(card), virtual_profile.CLOCKS)


def _train_into(card: Card, folder: Path) -> None:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    origin = Origin(hardware=card.gpu_name, vllm_version="simulated", model_name=card.model, created=created)
    rows = virtual_profile.virtual_profile(card, SEED, clocks=_clocks(card))
    table = table_of(rows)
    model = train(table, origin, folds=FOLDS, by_clock=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        artifact.save(model, work, table)
        _place(work, folder)
    except OSError:
        # Another demonstration was first; its artifact is as good.
        artifact.load_manifest(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _place(work: Path, folder: Path) -> None:
    """In the place of none or a damaged one. A good one made meanwhile stays: somebody may be reading it."""
    try:
        artifact.load_manifest(folder)
    except ArtifactError:
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
