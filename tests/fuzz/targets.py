"""Everything that reads what others wrote: how to feed it, and which refusals it may answer with.

Each target reads one input to the end and checks what it accepts; any exception but the documented ones, a
death of the process and an answer that takes longer than a second are findings.
"""

from __future__ import annotations

import asyncio
import json
import math
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import corpus
from model_targets import models
from rest_requests import RestApp
from simulated_fleet import Fleet
from target import Refused, Target, from_file

from kvwatt.state import EngineSnapshot, Histogram
from kvwatt_sim.recording import load_recording
from kvwatt_sim.traces import TraceError, load_azure, load_mooncake
from kvwattd import config as daemon_config
from kvwattd.api.schemas import ModelView
from kvwattd.api.tokens import TokenFileError, parse_tokens
from kvwattd.guard import config as guard_config
from kvwattd.guard import protocol
from kvwattd.guard.protocol import GuardError
from kvwattd.guard.statefile import StateFile, StateFileError
from kvwattd.settings import SettingsFile
from kvwattd.tap_stream import TapStream
from kvwattd.telemetry import tap
from kvwattd.telemetry.vllm_metrics import MetricsError, counters_reset, parse, self_test
from kvwattd.views import instance_view


def targets(folder: Path) -> list[Target]:
    """All of them; files are written into `folder`."""
    return [
        *_telemetry(),
        *_guard(folder),
        *_configuration(folder),
        *_traces(folder),
        *models(folder),
        _rest(),
        _decisions(folder / "decisions", folder / "model"),
    ]


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
        Target("metrics page", 0.2, little, read, (MetricsError,)),
        Target("metrics page, whole", 0.004, whole, read, (MetricsError,)),
        Target("metrics layout", 0.03, little, self_test, (MetricsError,)),
        Target("tap record", 0.17, tuple(corpus.records()), datagram, (tap.TapError,), "msgpack"),
    ]


def _decisions(folder: Path, model: Path) -> Target:
    """Pages and records that pass the parsers, taken to the end: learned from, decided on, shown."""
    fleet = Fleet(1, model, folder)
    (run,) = fleet.runs
    fleet.advance(30.0)

    def decide(data: bytes) -> None:
        fleet.clock.now_s += fleet.poll_s
        now_s = fleet.clock.now_s
        run.on_gpu(fleet.reading(0), {})
        if data.startswith(b"vllm:"):
            fleet.daemon.on_page(run, parse(data, now_s), "v0.20")
        else:
            run.observation.tap.on_record(tap.parse(data), now_s)
            fleet.daemon.on_page(run, fleet.page(0), "v0.20")
        fleet.daemon.tick(now_s)
        instance_view(run, fleet.daemon.mode, now_s, lambda at_s: at_s, ModelView(state="ready"))

    inputs = (*map(corpus.small, corpus.pages()), *corpus.records())
    return Target("pages and records to decisions", 0.01, inputs, decide, (MetricsError, tap.TapError))


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
            from_file(folder / "state.json", lambda path: StateFile(path).load()),
            (StateFileError,),
            "json",
        ),
        Target(
            "guard configuration",
            0.04,
            toml,
            from_file(folder / "guard.toml", lambda path: guard_config.build(guard_config.load(path))),
            (guard_config.ConfigError,),
        ),
    ]


def _configuration(folder: Path) -> list[Target]:
    toml = (corpus.CONFIG, *corpus.examples("deploy", "kvwatt*.toml"))
    known = tomllib.loads(corpus.CONFIG.decode())
    return [
        Target(
            "settings",
            0.02,
            (corpus.SETTINGS,),
            from_file(
                folder / "settings.json", lambda path: _settings(path, daemon_config.parse_config(known))
            ),
            (Refused,),
            "json",
        ),
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
            from_file(folder / "kvwatt.toml", daemon_config.load_config),
            (daemon_config.ConfigError,),
        ),
    ]


def _settings(path: Path, known: daemon_config.Config) -> None:
    settings = SettingsFile(path)
    settings.load(known, 1e9)
    if settings.errors:
        raise Refused


def _traces(folder: Path) -> list[Target]:
    return [
        Target("Azure trace", 0.04, (corpus.AZURE,), from_file(folder / "a.csv", load_azure), (TraceError,)),
        *(
            Target(name, 0.04, (sound,), from_file(folder / "t.jsonl", load), (TraceError,))
            for name, sound, load in (
                ("Mooncake trace", corpus.MOONCAKE, load_mooncake),
                ("recording", corpus.recording(), load_recording),
            )
        ),
    ]


def _rest() -> Target:
    app = RestApp()

    def read(data: bytes) -> None:
        status = asyncio.run(app.answer(data))
        assert 200 <= status < 500, status
        if status >= 400:
            raise Refused

    return Target("REST request", 0.02, app.corpus, read, (Refused,), "json")
