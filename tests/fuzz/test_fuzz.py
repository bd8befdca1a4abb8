"""Whatever bytes arrive at any parser: a checked value or the documented refusal, within a second."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import corpus
import pytest
from engine import LONGEST_S, fuzz
from host_stalls import lost_s
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_requests import RestApp
from target import Target
from targets import targets

from kvwatt import artifact

NAMES = (
    "metrics page",
    "metrics page, whole",
    "metrics layout",
    "tap record",
    "guard request",
    "guard answer",
    "guard state file",
    "guard configuration",
    "token file",
    "daemon configuration",
    "settings",
    "Azure trace",
    "Mooncake trace",
    "recording",
    "model manifest",
    "model trees",
    "model profile",
    "compiled table",
    "points to predict",
    "version record",
    "version pointer",
    "kept samples",
    "REST request",
    "pages and records to decisions",
)
JSON_NAMES = ("guard request", "guard answer", "guard state file", "model manifest")
JSON_NAMES += ("settings", "version record", "version pointer", "kept samples")
SEED, LEAST_INPUTS, INPUTS = 20, 200, 12_000


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    yield {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


def test_every_parser_is_among_them(known: dict[str, Target]) -> None:
    """No parser is left out of the fuzzing by mistake."""
    assert set(known) == set(NAMES)
    assert sum(target.share for target in known.values()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_sound_inputs_are_accepted(known: dict[str, Target], name: str) -> None:
    """What mutation starts from is accepted, so that inputs get past the first check."""
    for data in known[name].corpus:
        known[name].read(data)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_inputs_are_read_or_refused(known: dict[str, Target], name: str) -> None:
    """Only documented refusals come out of mutated inputs, and some inputs are accepted."""
    target = known[name]
    outcome = fuzz(target, SEED, range(max(int(INPUTS * target.share), LEAST_INPUTS)))
    assert outcome.bad == 0, "\n".join(outcome.findings)
    assert outcome.accepted > 0 and outcome.refused > 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def _within(target: Target, data: bytes) -> None:
    with suppress(target.refusals):
        target.read(data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(known: dict[str, Target], name: str, data: bytes) -> None:
    """Bytes that look like nothing at all are refused in the documented way."""
    _within(known[name], data)


@pytest.mark.parametrize("name", JSON_NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_refused(
    known: dict[str, Target], name: str, data: st.DataObject
) -> None:
    """A sound document with a value of any type in the place of another never gets through unchecked."""
    target = known[name]
    document = json.loads(data.draw(st.sampled_from(target.corpus)))
    inner = document
    while isinstance(inner, dict) and inner:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or not inner[key]:
            inner[key] = data.draw(JSON)
            break
        inner = inner[key]
    _within(target, json.dumps(document).encode())


@settings(max_examples=80, deadline=None)
@given(body=JSON, call=st.integers(0, 3))
def test_any_body_of_a_write_is_answered_without_an_internal_error(body: object, call: int) -> None:
    """Every write answers any JSON with success or a refusal, never with status 500."""
    app = RestApp()
    method, path, _ = json.loads(app.corpus[call])
    status = asyncio.run(app.answer(json.dumps([method, path, body]).encode()))
    assert 200 <= status < 500


def test_findings_can_be_made_again(known: dict[str, Target]) -> None:
    """The number of an input is enough to make it anew."""
    target = known["guard request"]
    first, second = (fuzz(target, 5, range(50)) for _ in range(2))
    assert (first.accepted, first.refused) == (second.accepted, second.refused)
    made = [target.make(random.Random(f"5/{target.name}/{n}")) for n in (7, 7, 8)]
    assert made[0] == made[1] != made[2]


HUGE, DEEP = b"1" + b"0" * 400, b"[" * 3000
DIGITS = b"9" * 5000
FOUND = {
    "an argument of the parser as a key": (
        "daemon configuration",
        b'_env_file = "x"\n' + corpus.CONFIG,
    ),
    "a number of 5,000 digits": ("daemon configuration", corpus.CONFIG.replace(b"2.0", DIGITS)),
    "a configuration nested too deep": ("daemon configuration", corpus.CONFIG.replace(b"2.0", DEEP)),
    "a guard's number beyond float": ("guard configuration", corpus.GUARD_CONFIG.replace(b"2.0", HUGE)),
    "a guard's configuration nested too deep": ("guard configuration", b"a = " + DEEP),
    "a lease beyond float": ("guard answer", corpus.guard_answers()[0].replace(b"2.0", HUGE)),
    "an infinite lease": ("guard answer", corpus.guard_answers()[0].replace(b"2.0", b"1e999")),
    "a token's name of 5,000 digits": ("token file", corpus.TOKENS.replace(b'"operator"', DIGITS)),
    "a time with a zone among others": ("Azure trace", corpus.AZURE.replace(b"50.9951690", b"50+01:00")),
    "a time beyond float": ("Mooncake trace", corpus.MOONCAKE.replace(b"3000", HUGE)),
    "a sample numbered infinity": ("kept samples", corpus.samples_file().replace(b"[3,", b"[1e400,")),
    "a lone carriage return in a header": ("points to predict", b"clock_mhz,\rbatch\n1200,8\n"),
}


@pytest.mark.parametrize(("name", "data"), FOUND.values(), ids=FOUND.keys())
def test_what_fuzzing_found_stays_refused(known: dict[str, Target], name: str, data: bytes) -> None:
    """Inputs that once raised something else are refused in the documented way."""
    with pytest.raises(known[name].refusals):
        known[name].read(data)


@pytest.mark.parametrize("wrong", [0.5, 10**400, {"a": 1}, "x"])
@pytest.mark.parametrize("key", ["features", "rows", "upper_factor", "step_axes", "ranges"])
def test_a_manifest_with_a_value_of_another_kind_is_refused(model: Path, key: str, wrong: object) -> None:
    """Every key of a manifest is checked for its kind before it is used."""
    manifest = json.loads((model / artifact.MANIFEST).read_text())
    (model / artifact.MANIFEST).write_text(json.dumps(manifest | {key: wrong}))
    with pytest.raises(artifact.ArtifactError, match="must"):
        artifact.load(model)


@pytest.fixture
def model(known: dict[str, Target], tmp_path: Path) -> Path:
    return corpus.model_folder(tmp_path / "model")


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.STEP_TREES, artifact.PROFILE])
def test_a_pipe_in_the_place_of_a_file_does_not_keep_the_reader_waiting(model: Path, name: str) -> None:
    """A named pipe that nobody writes to is refused at once."""
    (model / name).unlink()
    os.mkfifo(model / name)
    before_s = time.monotonic()
    with pytest.raises(artifact.ArtifactError, match="not a regular file"):
        artifact.load_profile(model) if name == artifact.PROFILE else artifact.load(model)
    assert time.monotonic() - before_s < LONGEST_S + lost_s(before_s)


def test_a_manifest_cannot_name_other_files(model: Path, tmp_path: Path) -> None:
    """No key of a manifest leads out of the artifact's folder, and none is executed."""
    witness = tmp_path / "witness"
    manifest = json.loads((model / artifact.MANIFEST).read_text())
    hostile = f"__import__('os').mknod({str(witness)!r})"
    for key in ("step_trees", "path", "files", "__reduce__", "hardware", "created", "model_name"):
        (model / artifact.MANIFEST).write_text(json.dumps(manifest | {key: hostile}))
        artifact.load(model)
    (model / artifact.MANIFEST).write_text(json.dumps(manifest | {"step_sha256": "../../witness"}))
    with pytest.raises(artifact.ArtifactError):
        artifact.load(model)
    assert not witness.exists()


def test_a_pickle_in_the_place_of_any_file_is_never_run(model: Path, tmp_path: Path) -> None:
    """Whatever file of an artifact holds a pickle, reading it runs nothing."""
    witness = tmp_path / "witness"
    pickled = f"cos\nmknod\n(S'{witness}'\ntR.".encode()
    artifact.load_compiled(model, (900, 1500), corpus.SHAPE)
    for path in sorted(model.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(pickled)
        try:
            artifact.load_compiled(model, (900, 1500), corpus.SHAPE)
            artifact.load(model)
            artifact.load_profile(model)
        except artifact.ArtifactError:
            pass
        path.write_bytes(whole)
    assert not witness.exists()


def test_axes_that_ask_for_more_memory_than_there_is_are_refused(model: Path) -> None:
    """Four axes of thousands of knots would be a table of terabytes."""
    manifest = json.loads((model / artifact.MANIFEST).read_text())
    manifest["step_axes"] = {key: list(range(1, 5000)) for key in manifest["step_axes"]}
    (model / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(artifact.ArtifactError, match=r"step_axes\.clocks_mhz"):
        artifact.load(model)
