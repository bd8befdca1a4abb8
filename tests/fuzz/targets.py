"""Everything that reads what others wrote: how to feed it, and which refusals it may answer with.

Each target reads one input to the end and checks what it accepts; any exception but the documented ones, a
death of the process and an answer that takes longer than a second are findings.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import corpus
import msgspec
from mutation import mutate_bytes, mutate_document
from rest_requests import RestApp

from kvwatt import artifact
from kvwatt.profiles import ProfileError, parse_points
from kvwatt.state import EngineSnapshot, Histogram
from kvwatt.table_cache import read_table
from kvwatt_sim.traces import TraceError, load_azure
from kvwattd import config as daemon_config
from kvwattd.api.tokens import TokenFileError, parse_tokens
from kvwattd.guard import config as guard_config
from kvwattd.guard import protocol
from kvwattd.guard.protocol import GuardError
from kvwattd.guard.statefile import StateFile, StateFileError
from kvwattd.model_versions import VersionStore
from kvwattd.refits import restored
from kvwattd.tap_stream import TapStream
from kvwattd.telemetry import tap
from kvwattd.telemetry.vllm_metrics import MetricsError, counters_reset, parse, self_test

Kind = Literal["bytes", "json", "msgpack"]


class Refused(Exception):  # noqa: N818 (an outcome, not an error)
    """A documented refusal that the parser tells otherwise than by raising."""


@dataclass(frozen=True)
class Target:
    """One parser. `share` is its part of all inputs; `splice` mixes corpus entries."""

    name: str
    share: float
    corpus: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    kind: Kind = "bytes"

    def make(self, rng: random.Random) -> bytes:
        """One mutated input."""
        chosen = rng.choice(self.corpus)
        if self.kind == "bytes" or rng.random() < 0.4:
            return mutate_bytes(rng, chosen, self.corpus)
        if self.kind == "json":
            return json.dumps(mutate_document(rng, json.loads(chosen))).encode()
        changed = mutate_document(rng, msgspec.msgpack.decode(chosen))
        return msgspec.msgpack.encode(_packable(changed))


def _packable(value: object) -> object:
    """msgpack has no integers beyond 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return math.inf if value > 0 else -math.inf
    if isinstance(value, list):
        return [_packable(item) for item in value]
    if isinstance(value, dict):
        return {key: _packable(item) for key, item in value.items()}
    return value


def targets(folder: Path) -> list[Target]:
    """All of them; files are written into `folder`."""
    return [
        *_telemetry(),
        *_guard(folder),
        *_configuration(folder),
        *_traces(folder),
        *_models(folder),
        _rest(),
    ]


def _file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return written


def _valid(snapshot: EngineSnapshot) -> None:
    """What every accepted page promises."""
    assert 0 <= snapshot.kv_usage <= 1
    assert min(snapshot.running, snapshot.waiting, snapshot.waiting_for_capacity) >= 0
    assert min(snapshot.block_size, snapshot.num_blocks) >= 1
    for name in snapshot.__slots__:
        value = getattr(snapshot, name)
        if isinstance(value, Histogram):
            assert math.isfinite(value.sum) and value.sum >= 0 and value.cumulative[-1] == value.count
            assert all(a <= b for a, b in pairwise(value.cumulative))
        elif isinstance(value, float):
            assert math.isfinite(value) and value >= 0


def _page(sound: EngineSnapshot) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        snapshot = parse(data, 1.0)
        _valid(snapshot)
        counters_reset(sound, snapshot)

    return read


def _telemetry() -> list[Target]:
    whole = tuple(corpus.pages())
    little = tuple(map(corpus.small, whole))
    read = _page(parse(whole[0], 0.0))
    stream = TapStream(1.5)

    def datagram(data: bytes) -> None:
        stream.on_record(tap.parse(data), 12.0)

    return [
        Target("metrics page", 0.22, little, read, (MetricsError,)),
        Target("metrics page, whole", 0.004, whole, read, (MetricsError,)),
        Target("metrics layout", 0.03, little, self_test, (MetricsError,)),
        Target("tap record", 0.2, tuple(corpus.records()), datagram, (tap.TapError,), "msgpack"),
    ]


def _request(line: bytes) -> None:
    """As the guard reads it: every field that any operation has."""
    message = protocol.decode(line)
    protocol.int_field(message, "id")
    match protocol.str_field(message, "op"):
        case "hello":
            protocol.int_field(message, "v")
            protocol.str_field(message, "role")
        case "set":
            protocol.uuids_field(message, "gpus")
            assert isinstance(protocol.int_field(message, "floor_mhz"), int)
            assert isinstance(protocol.int_field(message, "target_mhz"), int)
        case "reset":
            protocol.uuids_field(message, "gpus")


def _answer(line: bytes) -> None:
    """As the client reads it."""
    message = protocol.decode(line)
    if "lease_remaining_s" in message:
        assert math.isfinite(protocol.parse_status(message).lease_s)
    else:
        assert math.isfinite(protocol.parse_hello(message).lease_s)


def _guard(folder: Path) -> list[Target]:
    record = json.dumps({"version": 1, "boot_id": "b", "gpus": [corpus.UUID]}).encode()
    requests, answers = tuple(corpus.guard_requests()), tuple(corpus.guard_answers())
    toml = (corpus.GUARD_CONFIG, *corpus.examples("deploy", "*guard*.toml"))
    return [
        Target("guard request", 0.1, requests, _request, (GuardError,), "json"),
        Target("guard answer", 0.1, answers, _answer, (GuardError,), "json"),
        Target(
            "guard state file",
            0.05,
            (record,),
            _file(folder / "state.json", lambda path: StateFile(path).load()),
            (StateFileError,),
            "json",
        ),
        Target(
            "guard configuration",
            0.04,
            toml,
            _file(folder / "guard.toml", lambda path: guard_config.build(guard_config.load(path))),
            (guard_config.ConfigError,),
        ),
    ]


def _configuration(folder: Path) -> list[Target]:
    toml = (corpus.CONFIG, *corpus.examples("deploy", "kvwatt*.toml"))
    return [
        Target(
            "token file",
            0.02,
            (corpus.TOKENS,),
            lambda data: parse_tokens(data.decode("utf-8", "replace")),
            (TokenFileError,),
        ),
        Target(
            "daemon configuration",
            0.04,
            toml,
            _file(folder / "kvwatt.toml", daemon_config.load_config),
            (daemon_config.ConfigError,),
        ),
    ]


def _traces(folder: Path) -> list[Target]:
    return [
        Target("Azure trace", 0.05, (corpus.AZURE,), _file(folder / "a.csv", load_azure), (TraceError,)),
    ]


def _models(folder: Path) -> list[Target]:
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
            _file(damaged / artifact.MANIFEST, lambda path: artifact.load(path.parent)),
            refusal,
            "json",
        ),
        Target("model trees", 0.01, trees, _trees(forged, json.loads(manifest)), refusal),
        Target(
            "model profile",
            0.01,
            (b"\n".join(profile.split(b"\n")[:20]),),
            _file(damaged / artifact.PROFILE, lambda path: artifact.load_profile(path.parent)),
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
        Target(name, 0.012, (sound,), _file(path, read), refused, "json")
        for name, (path, sound, read) in made.items()
    ]


def _rest() -> Target:
    app = RestApp()

    def read(data: bytes) -> None:
        status = asyncio.run(app.answer(data))
        assert 200 <= status < 500, status
        if status >= 400:
            raise Refused

    return Target("REST request", 0.02, app.corpus, read, (Refused,), "json")
