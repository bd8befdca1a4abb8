"""Save and load a model: two LightGBM texts, a JSON manifest, and compiled tables as a cache.

    model.step.txt  model.power.txt  manifest.json  [profile.csv]  compiled-<hash>.table

The profile, where it is kept, is what the model was fitted to: a refit starts from it. Nothing is executed
on loading (no pickle). The manifest carries the SHA-256 of the texts and is written last, so that a
half-written directory is refused rather than used.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvwatt.compiled import CompiledModel, compile_model
from kvwatt.energy import PowerModel, PowerPrior
from kvwatt.fitting import Axes, lattice_of
from kvwatt.lattice import MAX_KNOTS, Lattice
from kvwatt.manifest import Manifest, ManifestError, manifest_from, number, numbers, text
from kvwatt.prior import StepPrior
from kvwatt.profiles import COLUMNS, ProfileError, ProfileRow, ProfileTable, format_row, parse_csv, table_of
from kvwatt.state import EngineShape
from kvwatt.table_cache import read_regular, read_table, write_table
from kvwatt.throughput import StepModel
from kvwatt.trees import read_trees

STEP_TREES = "model.step.txt"
POWER_TREES = "model.power.txt"
MANIFEST = "manifest.json"
PROFILE = "profile.csv"
MAX_MANIFEST_BYTES = 1 << 20
MAX_TREES_BYTES = 1 << 26
MAX_PROFILE_BYTES = 1 << 26
_COMPILE_VERSION = 2


class ArtifactError(Exception):
    """An artifact cannot be used; the message names the file and the key."""


def save(model: StepModel, directory: Path, profile: ProfileTable | None = None) -> None:
    """Write the artifact, creating `directory`; an older one in it is replaced.

    `profile` is what the model was fitted to; without it the model cannot be refitted online.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stale in (*directory.glob("compiled-*"), directory / PROFILE):
        stale.unlink(missing_ok=True)
    if profile is not None:
        _replace(directory / PROFILE, _profile_text(profile).encode())
    _replace(directory / STEP_TREES, model.step_trees.encode())
    _replace(directory / POWER_TREES, model.power_trees.encode())
    _replace(directory / MANIFEST, json.dumps(_document(model), indent=2).encode())


def load(directory: Path) -> StepModel:
    """The model in `directory`. Raises `ArtifactError`."""
    document = _read_document(directory)
    path = directory / MANIFEST
    try:
        manifest = manifest_from(document)
        prior = _step_prior(document)
        power_prior = _power_prior(document)
        factor = _upper_factor(document)
        step_axes, power_axes = (_axes(document, key) for key in ("step_axes", "power_axes"))
        hashes = {name: text(document, key) for key, name in _HASHES.items()}
    except ManifestError as error:
        raise ArtifactError(f"{path}: {error}") from error
    step_trees, power_trees = (_read_trees(directory / name, digest) for name, digest in hashes.items())
    correction = _lattice(directory / STEP_TREES, step_trees, step_axes)
    power = PowerModel(power_prior, _lattice(directory / POWER_TREES, power_trees, power_axes))
    return StepModel(prior, correction, power, factor, manifest, step_trees, power_trees)


def load_manifest(directory: Path) -> Manifest:
    """Only the manifest: enough to show, and to tell whether a model fits this hardware."""
    document = _read_document(directory)
    try:
        return manifest_from(document)
    except ManifestError as error:
        raise ArtifactError(f"{directory / MANIFEST}: {error}") from error


def verify(directory: Path) -> None:
    """Whether manifest and trees are whole, without evaluating them. Raises `ArtifactError`."""
    document = _read_document(directory)
    try:
        manifest_from(document)
        hashes = {name: text(document, key) for key, name in _HASHES.items()}
    except ManifestError as error:
        raise ArtifactError(f"{directory / MANIFEST}: {error}") from error
    for name, digest in hashes.items():
        _read_trees(directory / name, digest)


def load_profile(directory: Path) -> ProfileTable:
    """What the model in `directory` was fitted to. Raises `ArtifactError`."""
    path = directory / PROFILE
    data = _read_bytes(path, MAX_PROFILE_BYTES)
    try:
        return table_of(parse_csv(data.decode(), str(path)))
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not valid UTF-8: {error}") from error
    except ProfileError as error:
        raise ArtifactError(str(error)) from error


def load_compiled(
    directory: Path, clocks_mhz: tuple[int, ...], shape: EngineShape, cache: Path | None = None
) -> CompiledModel:
    """The compiled table, from the cache when it is fresh (no LightGBM import), else built and cached.

    `cache` defaults to the artifact's directory; one that cannot be written only costs time.
    """
    load_manifest(directory)
    key = _cache_key(directory, clocks_mhz, shape)
    path = (cache or directory) / f"compiled-{key}.table"
    cached = read_table(path, clocks_mhz)
    if cached is not None:
        return cached
    try:
        compiled = compile_model(load(directory), clocks_mhz, shape)
    except ValueError as error:
        raise ArtifactError(f"{directory}: {error}") from error
    # The cache is a convenience: a read-only directory must not stop the daemon.
    with contextlib.suppress(OSError):
        write_table(path, compiled)
    return compiled


_HASHES = {"step_sha256": STEP_TREES, "power_sha256": POWER_TREES}


def _document(model: StepModel) -> dict[str, Any]:
    return {
        **model.manifest.as_dict(),
        "upper_factor": model.upper_factor,
        "step_prior": list(model.prior.coefficients),
        "power_prior": list(model.power.prior.coefficients),
        "reference_mhz": model.power.prior.reference_mhz,
        "idle_clock_mhz": list(model.power.prior.idle_clock_mhz),
        "idle_w": list(model.power.prior.idle_w),
        "step_axes": _axes_document(model.correction),
        "power_axes": _axes_document(model.power.correction),
        "step_sha256": _sha256(model.step_trees.encode()),
        "power_sha256": _sha256(model.power_trees.encode()),
    }


def _profile_text(table: ProfileTable) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(format_row(row) for row in _profile_rows(table))
    return out.getvalue()


def _profile_rows(table: ProfileTable) -> Iterator[ProfileRow]:
    columns = (table.clock_mhz, *table.load, table.step_time_s, table.power_w)
    for clock, batch, kv, prefill, seconds, watts in zip(*columns, strict=True):
        kind = ("mixed" if batch > 0 else "prefill") if prefill > 0 else "decode"
        yield ProfileRow(clock, batch, kv, prefill, seconds, watts, table.tp, kind)
    for clock, watts in zip(table.idle_clock_mhz, table.idle_power_w, strict=True):
        yield ProfileRow(clock, 0, 0, 0, math.nan, watts, table.tp, "idle")


def _axes_document(lattice: Lattice) -> dict[str, list[float]]:
    return {
        "clocks_mhz": list(lattice.clocks_mhz),
        "batch": list(lattice.batch),
        "context": list(lattice.context),
        "prefill": list(lattice.prefill),
    }


def _read_document(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        document = json.loads(_read_bytes(path, MAX_MANIFEST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: must be an object, got {type(document).__name__}")
    return document


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from error


def _read_trees(path: Path, digest: str) -> str:
    data = _read_bytes(path, MAX_TREES_BYTES)
    if _sha256(data) != digest:
        raise ArtifactError(f"{path}: SHA-256 differs from the manifest's; the artifact is damaged or mixed")
    try:
        trees = data.decode()
        read_trees(trees, features=4)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return trees


def _lattice(path: Path, trees: str, axes: Axes) -> Lattice:
    try:
        return lattice_of(trees, axes)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _step_prior(document: dict[str, Any]) -> StepPrior:
    try:
        return StepPrior(numbers(document, "step_prior"))
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError("step_prior", str(error)) from error


def _power_prior(document: dict[str, Any]) -> PowerPrior:
    idle_clocks, idle_w = numbers(document, "idle_clock_mhz"), numbers(document, "idle_w")
    if any(b <= a for a, b in itertools.pairwise(idle_clocks)):
        raise ManifestError("idle_clock_mhz", f"must be ascending, got {idle_clocks}")
    if any(watts <= 0 for watts in idle_w):
        raise ManifestError("idle_w", f"must be positive, got {idle_w}")
    coefficients, reference_mhz = numbers(document, "power_prior"), number(document, "reference_mhz")
    try:
        return PowerPrior(coefficients, reference_mhz, idle_clocks, idle_w)
    except ValueError as error:
        raise ManifestError("power_prior", str(error)) from error


def _upper_factor(document: dict[str, Any]) -> float:
    factor = number(document, "upper_factor")
    if not 1.0 <= factor <= 10.0:
        raise ManifestError("upper_factor", f"must lie between 1 and 10, got {factor}")
    return factor


def _axes(document: dict[str, Any], key: str) -> Axes:
    sides = document.get(key)
    if not isinstance(sides, dict):
        raise ManifestError(key, f"must be an object, got {type(sides).__name__}")
    values = {}
    for side in ("clocks_mhz", "batch", "context", "prefill"):
        knots = numbers(sides, side)
        ascending = all(a < b for a, b in itertools.pairwise(knots))
        if not 1 <= len(knots) <= MAX_KNOTS or not ascending or knots[0] < (side == "clocks_mhz"):
            raise ManifestError(f"{key}.{side}", f"must be 1 to {MAX_KNOTS} ascending non-negative numbers")
        values[side] = knots
    return Axes(**values)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _cache_key(directory: Path, clocks_mhz: tuple[int, ...], shape: EngineShape) -> str:
    digest = hashlib.sha256(_read_bytes(directory / MANIFEST, MAX_MANIFEST_BYTES))
    limits = (shape.max_num_seqs, shape.max_num_batched_tokens, shape.kv_capacity_tokens)
    digest.update(json.dumps([_COMPILE_VERSION, clocks_mhz, limits]).encode())
    return digest.hexdigest()[:24]


def _replace(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
