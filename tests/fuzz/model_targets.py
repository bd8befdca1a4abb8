"""Model artifacts, their versions and what is kept beside them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import corpus
from target import Refused, Target, from_file

from kvwatt import artifact
from kvwatt.profiles import ProfileError, parse_points
from kvwatt.table_cache import read_table
from kvwattd.model_versions import VersionStore
from kvwattd.refits import restored


def models(folder: Path) -> list[Target]:
    model = corpus.model_folder(folder / "model")
    clocks, _, cached = corpus.compiled_table(model)
    damaged = corpus.copy_of(model, folder / "damaged")
    _keep_few_trees(damaged)
    manifest = (damaged / artifact.MANIFEST).read_bytes()
    forged = corpus.copy_of(damaged, folder / "forged")
    profile = (model / artifact.PROFILE).read_bytes()
    trees = tuple((damaged / name).read_bytes() for name in (artifact.STEP_TREES, artifact.POWER_TREES))
    refusal = (artifact.ArtifactError,)

    def tables(data: bytes) -> None:
        """With a fitting hash, as whoever forges a table would make it."""
        body = data.partition(b"\n")[2]
        digest = hashlib.sha256(body).hexdigest().encode()
        (folder / "table").write_bytes(data[: len(TABLE)] + digest + b"\n" + body)
        if read_table(folder / "table", clocks) is None:
            raise Refused

    return [
        Target(
            "model manifest",
            0.05,
            (manifest,),
            from_file(damaged / artifact.MANIFEST, lambda path: artifact.load(path.parent)),
            refusal,
            "json",
        ),
        Target("model trees", 0.01, trees, _trees(forged, json.loads(manifest)), refusal),
        Target(
            "model profile",
            0.01,
            (b"\n".join(profile.split(b"\n")[:20]),),
            from_file(damaged / artifact.PROFILE, lambda path: artifact.load_profile(path.parent)),
            refusal,
        ),
        Target("compiled table", 0.01, (cached,), tables, (Refused,)),
        Target("points to predict", 0.02, (POINTS,), lambda data: parse_points(_text(data)), (ProfileError,)),
        *_versions(folder, model),
    ]


TABLE = b"kvwatt-table 2 "
POINTS = b"clock_mhz,decode_batch,kv_tokens,prefill_tokens\n1200,8,6000,0\n900,1,100,256\n"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _keep_few_trees(folder: Path) -> None:
    """Only the first trees of a model: LightGBM then reads them as fast as they are mutated."""
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    for name, key in ((artifact.STEP_TREES, "step_sha256"), (artifact.POWER_TREES, "power_sha256")):
        head, *blocks = (folder / name).read_text().split("\nTree=")
        head = re.sub(r"\ntree_sizes=.*", "", head)
        text = "\nTree=".join([head, *blocks[:2]]).rstrip() + "\n\n\nend of trees\n"
        (folder / name).write_text(text)
        manifest[key] = hashlib.sha256(text.encode()).hexdigest()
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))


def _trees(folder: Path, manifest: dict[str, object]) -> Callable[[bytes], object]:
    """Trees with the hash that the manifest states, as whoever forges an artifact would make it."""

    def read(data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        (folder / artifact.STEP_TREES).write_bytes(data)
        (folder / artifact.POWER_TREES).write_bytes(data)
        forged = manifest | {"step_sha256": digest, "power_sha256": digest}
        (folder / artifact.MANIFEST).write_text(json.dumps(forged))
        artifact.load(folder)

    return read


def _store(folder: Path, model: Path) -> tuple[VersionStore, bytes]:
    """A store with one sound version, and its record."""
    store = VersionStore(folder, model)
    first = store.folder / "versions" / "1"
    corpus.copy_of(model, first)
    record = json.dumps({"base_sha256": store.base_sha256(), "parent": 0, "samples": 12}).encode()
    (first / "version.json").write_bytes(record)
    return store, record


def _versions(folder: Path, model: Path) -> list[Target]:
    store, record = _store(folder / "versions-of-a", model)
    other, _ = _store(folder / "versions-of-b", model)
    pointer = json.dumps({"number": 1, "held": False, "base_sha256": store.base_sha256()}).encode()

    def versions(path: Path) -> None:
        if store.versions()[1].state == "damaged":
            raise Refused

    def serving(path: Path) -> None:
        if other.serving().number == 0:
            raise Refused

    def samples(path: Path) -> None:
        if not restored(other)[0].samples:
            raise Refused

    refused = (Refused,)
    made = {
        "version record": (store.folder / "versions" / "1" / "version.json", record, versions),
        "version pointer": (other.folder / "current", pointer, serving),
        "kept samples": (other.folder / "samples.json", corpus.samples_file(), samples),
    }
    return [
        Target(name, 0.012, (sound,), from_file(path, read), refused, "json")
        for name, (path, sound, read) in made.items()
    ]
