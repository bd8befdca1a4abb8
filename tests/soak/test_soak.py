"""Nothing that the daemon keeps grows with time, noise or the number of its instances."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from simulated_fleet import CARD, Fleet, LogCount, objects

from kvwatt import artifact
from kvwatt.profiles import table_of
from kvwatt.training import Origin, train
from kvwatt_sim.cards import load
from kvwatt_sim.virtual_profile import virtual_profile
from kvwattd.instance import DECISIONS_KEPT
from kvwattd.models import Models
from kvwattd.tap_stream import TapStream
from kvwattd.telemetry import exposition
from kvwattd.telemetry.poller import new_client
from kvwattd.telemetry.vllm_metrics import MetricsError
from kvwattd.vllm_plugin.wire import VERSION, Record

STRETCH_S = 450.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the simulated GPU."""
    folder, card = tmp_path_factory.mktemp("model"), load(CARD)
    origin = Origin(card.gpu_name, "0.32.0", "sim", "2026-01-01T00:00:00+00:00")
    artifact.save(train(table_of(virtual_profile(card, seed=0)), origin, folds=2, by_clock=False), folder)
    return folder


@pytest.fixture
def lines() -> Iterator[LogCount]:
    """Counts what is logged."""
    counter, root = LogCount(), logging.getLogger()
    root.addHandler(counter)
    before = root.level
    root.setLevel(logging.INFO)
    yield counter
    root.setLevel(before)
    root.removeHandler(counter)


def test_hours_of_decisions_leave_nothing_behind(model: Path, tmp_path: Path, lines: LogCount) -> None:
    """After a first stretch of simulated time, objects and log lines stay where they are."""
    fleet = Fleet(1, model, tmp_path, tick_s=0.5, poll_s=1.0)
    fleet.advance(2 * STRETCH_S)
    known, told = objects(), lines.lines
    fleet.advance(STRETCH_S)
    assert objects() <= 1.02 * known
    assert lines.lines <= told + 2, lines.kinds
    for run in fleet.runs:
        assert sum(run.bindings.values()) > 2000
        assert len(run.decisions) <= DECISIONS_KEPT
        assert len({recorded.decision.clock_mhz for recorded in run.decisions}) > 3


def test_instances_cost_no_more_each_when_there_are_more(model: Path, tmp_path: Path) -> None:
    """Objects per instance do not depend on how many instances there are."""
    counts = []
    for size in (1, 8, 32):
        before = objects()
        fleet = Fleet(size, model, tmp_path / str(size), tick_s=1.0, poll_s=5.0)
        fleet.advance(30.0)
        counts.append((objects() - before) / size)
        del fleet
    assert counts[2] <= 1.1 * counts[1] <= 1.1 * 1.1 * counts[0]


async def test_instances_of_one_kind_share_their_table(model: Path, tmp_path: Path) -> None:
    """Two instances with the same GPU, engine and bounds have one table; others and later ones their own."""
    fleet = Fleet(3, model, tmp_path)
    fleet.advance(2.0)
    clocks = {"i0": (900, 1500), "i1": (900, 1500), "i2": (900, 1500, 2100)}
    models = Models(model, 5.0, lambda run: clocks[run.name])
    for run in fleet.runs:
        await models.refresh(run)
    first, second, other = (run.model.compiled for run in fleet.runs)
    assert first is not None and first is second and other is not None and other is not first
    again = tmp_path / "again"
    shutil.copytree(model, again)
    models = Models(again, 5.0, lambda run: clocks[run.name])
    await models.refresh(fleet.runs[0])
    (again / artifact.MANIFEST).touch()
    before = fleet.runs[0].model.compiled
    await models.refresh(fleet.runs[0])
    assert fleet.runs[0].model.compiled is not before


async def test_pollers_share_their_certificates() -> None:
    """A thousand pollers do not read the system's certificates a thousand times."""
    clients = [new_client() for _ in range(200)]
    before = objects()
    clients += [new_client() for _ in range(200)]
    assert (objects() - before) / 200 < 120
    for client in clients:
        await client.aclose()


def test_a_flood_of_senders_is_forgotten() -> None:
    """Records of ever new senders leave no trace of each."""
    record = Record(VERSION, 1, 0.0, 77, 1, "", "m", 0, 3, 0, 0.2, None, 0, 0.0, 3, 0, None, 0, 3, 0, 0)
    stream = TapStream(1.5)
    for sender in range(2000):
        stream.on_record(msgspec.structs.replace(record, sender=sender), 1.0 + sender * 1e-3)
    before = objects()
    for sender in range(2000, 6000):
        stream.on_record(msgspec.structs.replace(record, sender=sender), 1.0 + sender * 1e-3)
    assert objects() - before < 500


def test_series_that_never_come_again_do_not_stay() -> None:
    """Pages whose labels are others every time fill no memory, however long the labels are."""
    for number in range(6000):
        line = b'vllm:num_requests_running{engine="0",model_name="m%d"} 1\n' % number
        assert len(list(exposition.samples(line))) == 1
    assert exposition._series.cache_info().currsize <= 4096
    huge = b'vllm:num_requests_running{model_name="%s"} 1\n' % (b"x" * 100_000)
    with pytest.raises(MetricsError, match="bad_value"):
        list(exposition.samples(huge))
