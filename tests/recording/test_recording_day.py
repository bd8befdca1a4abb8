"""The daemon's instance code recorded as the loop hands it over, beside a plant in virtual time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from kvwatt.policy import PolicyParams
from kvwatt.state import Slo, SloTarget
from kvwatt_sim.recording import load_recording
from kvwatt_sim.replay.controller import replay
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import clocks, plant
from kvwatt_sim.replay.told import WALL_S
from kvwatt_sim.workload import generate
from kvwattd.config import parse_config
from kvwattd.loop import Daemon
from kvwattd.recording.day import Recording

SECONDS = 40.0
SLO = Slo(SloTarget(3.0), SloTarget(0.2))


class Recorded:
    """A controller whose instance is handed to a recording as the loop does it."""

    def __init__(self, inner: KvwattController, folder: Path | None) -> None:
        self._inner = inner
        self._now_s = 0.0
        self.period_s = inner.period_s
        self.recording = Recording(folder, 10**7, wall=lambda: WALL_S + self._now_s)

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        self._now_s, run = now_s, self._inner.run
        page, read = run.observation.snapshot, run.samples
        clock = self._inner.target(now_s, plant)
        if run.observation.snapshot is not page:
            self.recording.on_page(run)
        if run.samples is not read:
            self.recording.on_gpu(run)
        return clock


def run(folder: Path | None, tapped: bool = True) -> Outcome:
    card = plant("l20")
    shape, permitted = card.engine_shape(), clocks(card)
    model = compiled_model(card, permitted, shape)
    controller = Recorded(KvwattController(card, shape, model, SLO, PolicyParams(), tapped=tapped), folder)
    controller.recording.start()
    outcome = replay(card, shape, generate(1.5, SECONDS, seed=3), controller, SECONDS)
    controller.recording.close()
    return outcome


def test_what_the_daemon_saw_is_recorded(tmp_path: Path) -> None:
    """Every request that finished while the tap was trusted, with its latencies; promises; GPU energy."""
    outcome = run(tmp_path / "days")
    (recorded,) = load_recording(tmp_path / "days")
    assert recorded.run.promised_s == {"ttft": 3.0, "tbt": 0.2}
    assert recorded.run.default_mhz == 2520
    served = {
        (r.request.prompt_tokens, r.output_tokens): r for r in outcome.records if r.first_token_s is not None
    }
    assert len(outcome.records) - 15 <= len(recorded.requests) <= len(outcome.records)
    for line in recorded.requests:
        true = served[line.prompt_tokens, line.output_tokens]
        assert line.arrival_s - WALL_S == pytest.approx(true.request.arrival_s, abs=1e-5)
        assert line.e2e_s == pytest.approx(true.finished_s - true.request.arrival_s, abs=1e-6)
    assert recorded.energy_j is not None
    assert 0.4 * outcome.energy_j < recorded.energy_j < outcome.energy_j


def test_without_a_folder_nothing_is_recorded_and_nothing_changes(tmp_path: Path) -> None:
    """The run is the same to the last joule."""
    assert run(None).energy_j == run(tmp_path / "days").energy_j


def test_without_the_tap_only_gpus_are_recorded(tmp_path: Path) -> None:
    """Requests are not told one by one then, and none is made up."""
    run(tmp_path / "days", tapped=False)
    kinds = [line.split('"')[3] for line in next((tmp_path / "days").iterdir()).read_text().splitlines()]
    assert set(kinds) == {"run", "gpu"}


def test_a_folder_that_cannot_be_made_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon serves on without a recording and says so once."""
    (tmp_path / "file").write_text("")
    run(tmp_path / "file" / "days")
    assert sum("nothing is recorded" in record.getMessage() for record in caplog.records) == 1


async def test_the_daemon_opens_and_closes_its_recording(tmp_path: Path) -> None:
    """Configured under [record]; the folder is there while it runs, and stopping ends the writer."""
    data = {
        "daemon": {"state_dir": str(tmp_path / "state"), "mode": "off"},
        "record": {"dir": str(tmp_path / "record"), "max_mb": 5},
        "slo": {"tbt": {"limit_s": 0.1}},
        "instance": [{"name": "chat", "url": "http://127.0.0.1:9", "gpus": ["0"]}],
    }
    daemon, stop = Daemon(parse_config(data)), asyncio.Event()
    task = asyncio.create_task(daemon.run(stop))
    async with asyncio.timeout(90):
        while daemon.ticks < 2:  # noqa: ASYNC110 (what is waited for sets no event)
            await asyncio.sleep(0.01)
    assert (tmp_path / "record").is_dir()
    stop.set()
    await task
    assert "recorder" not in {thread.name for thread in threading.enumerate()}
