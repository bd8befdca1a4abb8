"""The link between the daemon and the scheduler inside vLLM: a file one way, datagrams the other."""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvwatt.length_classes import ClassLengths, FinishedRequest
from kvwattd.config import ConfigError, Mode, parse_config
from kvwattd.loop import Daemon
from kvwattd.scheduler_link.message import lengths_of
from kvwattd.scheduler_link.view import scheduler_view
from kvwattd.scheduler_link.writer import SchedulerLink
from kvwattd.telemetry.tap import TapError, TapReceiver, parse
from kvwattd.vllm_plugin.gate import Gate
from kvwattd.vllm_plugin.report import Report
from kvwattd.vllm_plugin.told import FRESH_S, VERSION, Lengths, Message, Reader, Told, read
from kvwattd.vllm_plugin.wire import SCHEDULER_VERSION, SchedulerRecord


def written(path: Path, message: Message) -> None:
    """As the daemon does it; a new inode each time."""
    new = path.with_name("new")
    new.write_bytes(msgspec.json.encode(message))
    new.replace(path)


def test_a_message_holds_while_it_is_fresh(tmp_path: Path) -> None:
    """Missing, stale, of the future or for another: nothing is told; back again without a restart."""
    path = tmp_path / "scheduler.json"
    reader, mine = Reader(path, "", "m", 0), Told("m", max_seqs=7)
    assert reader.told(0.0) is None
    written(path, Message(VERSION, 5.0, [mine]))
    assert reader.told(0.5) is None  # looks once a second
    assert reader.told(5.0) == mine
    assert reader.told(5.0 + FRESH_S) == mine
    assert reader.told(5.1 + FRESH_S) is None
    written(path, Message(VERSION, 30.0, [Told("other")]))
    assert reader.told(30.0) is None
    written(path, Message(VERSION, 90.0, [mine]))
    assert reader.told(40.0) is None
    written(path, Message(VERSION, 45.0, [mine]))
    assert reader.told(45.5) == mine
    path.unlink()
    assert reader.told(47.0) is None
    assert reader.errors == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"version": 2, "written_s": 1.0}',
        b'{"version": 1, "written_s": "now"}',
        b'{"version": 1, "written_s": 1.0, "engines": [{"model": "m", "max_seqs": 0}]}',
        b'{"version": 1, "written_s": 1.0, "engines": [{"model": "m", "lengths": [{"tokens": [9, 3]}]}]}',
        b'{"version": 1, "written_s": 1.0, "engines": [{"model": "m", "order": "random"}]}',
        b" " * (1 << 20) + b"{}",
        b"[" * 200_000,
    ],
)
def test_a_message_that_cannot_be_read_tells_nothing_and_is_counted(tmp_path: Path, content: bytes) -> None:
    """Too large, not JSON, another version, nonsense values."""
    path = tmp_path / "scheduler.json"
    path.write_bytes(content)
    reader = Reader(path, "", "m", 0)
    assert reader.told(1.0) is None
    assert reader.errors == 1
    assert reader.told(1.5) is None
    assert reader.errors == 1


def test_the_engine_takes_what_is_meant_for_it(tmp_path: Path) -> None:
    """By its name where it has one, else by model and rank; where two fit, nothing."""
    path = tmp_path / "scheduler.json"
    a, b = Told("m", instance="a", engine=0, max_seqs=1), Told("m", instance="b", engine=1, max_seqs=2)
    written(path, Message(VERSION, 1.0, [a, b]))
    assert Reader(path, "b", "m", 1).told(1.0) == b
    assert Reader(path, "", "m", 0).told(1.0) == a
    assert Reader(path, "c", "m", 0).told(1.0) is None
    written(path, Message(VERSION, 1.0, [Told("m", instance="a"), Told("m", instance="b")]))
    assert Reader(path, "", "m", 0).told(1.0) is None


def test_lengths_told_are_those_of_the_survival_model() -> None:
    """Quantiles by class of prompt: long prompts were answered at length, short ones shortly."""
    lengths, rng = ClassLengths(), np.random.default_rng(1)
    assert lengths_of(lengths) == []
    for _ in range(40):
        short = [FinishedRequest(40, int(n)) for n in rng.integers(10, 30, 20)]
        long = [FinishedRequest(2000, int(n)) for n in rng.integers(400, 600, 20)]
        lengths.update([*short, *long])
    told = lengths_of(lengths)
    assert [item.prompt_below for item in told] == [64, 256, 1024, 4096, None]
    medians = [item.tokens[len(item.tokens) // 2] for item in told]
    assert 10 <= medians[0] <= 35
    assert 380 <= medians[3] <= 620
    assert all(item.tokens == sorted(item.tokens) for item in told)


CONFIG = """
[api]
port = 0
[daemon]
mode = "{mode}"
state_dir = "{folder}/state"
[tap]
socket = "{folder}/tap.sock"
[scheduler]
file = "{folder}/scheduler.json"
[slo.tbt]
limit_s = 0.1
[[instance]]
name = "one"
url = "http://127.0.0.1:1"
gpus = ["0"]
model_name = "m"
"""


async def until(done: Callable[[], bool]) -> None:
    for _ in range(9000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


def daemon(folder: Path, mode: str = "active") -> Daemon:
    return Daemon(parse_config(tomllib.loads(CONFIG.format(folder=folder, mode=mode))))


async def test_the_file_is_there_in_active_mode_only_and_goes_with_the_daemon(tmp_path: Path) -> None:
    """In shadow mode nothing is told to any instance; a folder that is missing is a count and no more."""
    made = daemon(tmp_path)
    link, path = made.schedulers, tmp_path / "scheduler.json"
    job = asyncio.create_task(link.run())
    await until(path.exists)
    assert read(path).engines == []  # no page of the engine yet
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not path.exists()
    path.write_text("old")
    made.set_mode(Mode.SHADOW)
    job = asyncio.create_task(link.run())
    await until(lambda: not path.exists())
    job.cancel()
    lost = made.config.scheduler.model_copy(update={"file": tmp_path / "gone" / "scheduler.json"})
    failing = SchedulerLink(lost, lambda: made.runs.values(), made.now, lambda: Mode.ACTIVE)
    job = asyncio.create_task(failing.run())
    await until(lambda: failing.errors > 0)
    job.cancel()


@pytest.mark.parametrize("more", ["kv_budget = true", 'order = "smallest"', 'admission = "throttllem"'])
def test_what_is_to_be_told_needs_a_file(tmp_path: Path, more: str) -> None:
    """The error names the section; a path must be absolute, a word one of the known."""
    text = CONFIG.format(folder=tmp_path, mode="active")
    with pytest.raises(ConfigError, match=r"scheduler.*need file"):
        parse_config(tomllib.loads(text.replace(f'file = "{tmp_path}/scheduler.json"', more)))
    for bad, told in (
        ('file = "here.json"', r"scheduler\.file.*absolute"),
        ('order = "x"', r"scheduler\.order.*x"),
    ):
        with pytest.raises(ConfigError, match=told):
            parse_config(tomllib.loads(text.replace(f'file = "{tmp_path}/scheduler.json"', bad)))
    assert (
        parse_config(tomllib.loads(text.replace("[slo.tbt]", f"{more}\n[slo.tbt]"))).scheduler.file
        is not None
    )


def record(**changed: object) -> SchedulerRecord:
    gate = Gate()
    made = Report("", "one", "m", 0).record(1.0, gate, 10, 2, (3, True, 1, ""))
    return msgspec.structs.replace(made, **changed)


async def test_what_the_scheduler_did_reaches_the_daemon(tmp_path: Path) -> None:
    """Over the tap's socket, from another process than the tap's; at most once a second."""
    made = daemon(tmp_path)
    assert made.tap is not None
    await made.tap.start()
    report, gate = Report(str(tmp_path / "tap.sock"), "one", "m", 0), Gate()
    gate.totals.steps["overflow"] = 4
    state = (3, True, 1, "")
    assert report.step(100.0, gate, 10, 2, state) is not None
    assert report.step(100.9, gate, 11, 2, state) is None
    tap = made.runs["one"].observation.tap
    await until(lambda: tap.scheduler is not None)
    seen = scheduler_view(tap, made.now())
    report.close()
    made.tap.close()
    assert seen is not None
    assert (seen.steps_total, seen.faults_total, seen.held, seen.told) == (10, 2, 3, True)
    assert seen.held_steps_total["overflow"] == 4
    assert seen.horizon_steps >= 1
    assert seen.aside is None
    assert made.tap.records == 0  # steps only


def test_a_scheduler_record_that_makes_no_sense_is_refused() -> None:
    """As any other datagram: by cause."""
    good = record()
    assert parse(msgspec.msgpack.encode(good)) == good
    many = {str(n): n for n in range(100)}
    for bad in (
        record(steps=-1),
        record(held_steps=many),
        record(held_steps={"x": -1}),
        record(sent_s=float("inf")),
    ):
        with pytest.raises(TapError) as told:
            parse(msgspec.msgpack.encode(bad))
        assert told.value.cause == "value"
    cut = msgspec.msgpack.encode(good)[:-3]
    with pytest.raises(TapError) as told:
        parse(cut)
    assert told.value.cause == "malformed"
    assert good.version == SCHEDULER_VERSION
    assert good.sender == os.getpid()


def test_receivers_that_want_steps_only_ignore_schedulers(tmp_path: Path) -> None:
    """A recorder or a test is not disturbed."""
    records: list[object] = []
    receiver = TapReceiver(tmp_path / "s", records.append)
    receiver.datagram_received(msgspec.msgpack.encode(record()), None)
    assert records == []
    assert not receiver.refused


def test_lengths_that_fall_are_refused() -> None:
    """By the type, wherever a message is made or read."""
    with pytest.raises(ValueError, match="ascend"):
        Lengths([3, 2])
