"""The tap in real vLLM: exact where the metrics page is coarse, used by the daemon, and never in the way.

Other versions of vLLM than the pinned one: KVWATT_VLLM_VENV=VENV pytest -m vllm tests/real_vllm/test_tap.py
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from kvwatt_daemon import daemon, wait_until
from load_phases import Background, Phase, requests, serve
from plant_model import free_port, train_model
from tap_plugin import plugin_paths
from vllm_server import CARD, REPOSITORY, VllmServer, make_model, running, vllm_python

from kvwatt.state import EngineSnapshot
from kvwatt_sim.cards import load
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.traces import TraceRequest
from kvwattd.tap_progress import TapProgress
from kvwattd.telemetry.tap import TapReceiver
from kvwattd.telemetry.vllm_metrics import parse
from kvwattd.vllm_plugin.wire import Record

pytestmark = pytest.mark.vllm

GPU = "GPU-5f1c2b7e-0000-4000-8000-000000000021"
INSTANCE = "tiny"
LENGTH_STOPPED = 1
SCHEDULER = "kvwattd.vllm_plugin.scheduler.KvwattSyncScheduler"  # without pressure it holds nobody


@dataclass(frozen=True)
class Tapped:
    """Real vLLM with the tap inside, on a simulated GPU."""

    server: VllmServer
    gpus: SimGpus
    folder: Path
    environment: dict[str, str]

    @property
    def socket(self) -> Path:
        return self.folder / "tap.sock"


@pytest.fixture(scope="module")
def tapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    """vLLM with the plugin, started once for all tests here; nobody listens yet."""
    folder = tmp_path_factory.mktemp("tapped")
    python, state = vllm_python(), folder / "gpus.state"
    with SimGpus.create(state, [load(CARD).gpu_spec(GPU)]) as gpus:
        server = VllmServer(
            python,
            make_model(python, folder / "tiny"),
            state,
            free_port(),
            folder / "vllm.log",
            environment={"KVWATT_TAP_SOCKET": str(folder / "tap.sock"), "KVWATT_TAP_INSTANCE": INSTANCE},
            paths=[*plugin_paths(folder), REPOSITORY / "predictor"],
            options={"--scheduler-cls": SCHEDULER},
        )
        with running(server):
            yield Tapped(server, gpus, folder, os.environ | env_for(build(), state))


def page(server: VllmServer) -> EngineSnapshot:
    content = httpx.get(f"{server.url}/metrics", timeout=30.0, trust_env=False).content
    return parse(content, time.monotonic(), None, None)


@dataclass(frozen=True)
class Recorded:
    """What was asked of vLLM, what its pages said before and after, and what the tap told meanwhile."""

    asked: list[tuple[int, int]]
    before: EngineSnapshot
    after: EngineSnapshot
    records: list[Record]
    refused: dict[str, int]


@pytest.fixture(scope="module")
def recorded(tapped: Tapped) -> Recorded:
    """Half a minute of conversations, with a plain receiver instead of the daemon."""
    assert serve(tapped.server.url, requests((Phase(1.0, 4.0),), seed=1), seed=1)[0].error is None
    load_requests = requests((Phase(1.0, 15.0), Phase(3.0, 10.0)), seed=3)
    return asyncio.run(record_load(tapped, load_requests))


async def record_load(tapped: Tapped, load_requests: tuple[TraceRequest, ...]) -> Recorded:
    records: list[Record] = []
    receiver = TapReceiver(tapped.socket, records.append)
    await receiver.start()
    await asyncio.sleep(1.5)  # the tap looks for a listener once a second
    before = page(tapped.server)
    served = await asyncio.to_thread(serve, tapped.server.url, load_requests, 3)
    after = page(tapped.server)
    await asyncio.sleep(0.5)
    receiver.close()
    await asyncio.sleep(0)
    assert {item.error for item in served} == {None}
    asked = [(item.prompt_tokens, item.output_tokens) for item in load_requests]
    return Recorded(asked, before, after, records, dict(receiver.refused))


def test_every_step_is_told(recorded: Recorded) -> None:
    """No record is refused or lost, and their tokens and steps are those that the page counted."""
    records, before, after = recorded.records, recorded.before, recorded.after
    assert recorded.refused == {}
    assert [r.sequence for r in records] == list(
        range(records[0].sequence, records[0].sequence + len(records))
    )
    generated = sum(r.generation_tokens for r in records)
    assert generated == after.generation_tokens_total - before.generation_tokens_total
    assert generated == records[-1].generation_tokens_total - records[0].generation_tokens_total + (
        records[0].generation_tokens
    )
    assert sum(len(r.first_tokens_s) for r in records) == after.ttft_s.count - before.ttft_s.count
    assert sum(r.decodes for r in records) == after.itl_s.count - before.itl_s.count
    assert sum(r.itl_sum_s for r in records) == pytest.approx(after.itl_s.sum - before.itl_s.sum, rel=1e-6)
    prompts = after.prompt_tokens_total - before.prompt_tokens_total
    cached = after.prompt_tokens_cached_total - before.prompt_tokens_cached_total
    assert sum(r.prompt_tokens for r in records) == prompts - cached


def test_finished_requests_are_told_exactly(recorded: Recorded) -> None:
    """Prompt and output lengths are those that were asked for, one by one, with their limits and times."""
    finished = [item for r in recorded.records for item in r.finished]
    assert sorted((f.prompt_tokens, f.output_tokens) for f in finished) == sorted(recorded.asked)
    assert {f.reason for f in finished} == {LENGTH_STOPPED}
    assert all(f.max_tokens == f.output_tokens for f in finished)
    assert all(f.queued_s >= 0 and 0 < f.prefill_s <= f.e2e_s for f in finished)
    assert all(f.queued_s + f.prefill_s + f.decode_s <= f.e2e_s + 0.05 for f in finished)


def test_step_times_are_those_of_the_steps(recorded: Recorded) -> None:
    """Where nobody was preempted, all who got a token waited one step for it: smallest and mean agree."""
    calm = [r for r in recorded.records if r.decodes and not r.preempted and r.step_s]
    assert len(calm) > 100
    means = [r.itl_sum_s / r.decodes / r.step_s for r in calm if r.step_s]
    assert min(means) >= 1.0 - 1e-9
    assert sorted(means)[int(0.9 * len(means))] < 1.01


def test_running_requests_are_reconstructed(recorded: Recorded) -> None:
    """Each request is recognised at its end by its arrival, with the tokens that were counted for it."""
    progress, faults = TapProgress(), 0
    for told in recorded.records:
        progress.on_record(told, told.sent_s)
        faults += progress.fault() is not None
        known = progress.requests(0.0, 100.0)
        if told.running is not None and told.waiting is not None and known:
            # A request that a stop string or its client ended is inside for a step more.
            assert abs(len(known) - told.running - told.waiting) <= 1
    assert faults == 0
    assert progress.score.matched == len(recorded.asked)
    assert progress.score.unmatched == progress.score.vanished == 0
    assert progress.score.error_tokens < 0.5


def test_state_and_sender_are_told(recorded: Recorded) -> None:
    """Batch, queue and cache are there, and the batch is what got tokens, give or take who began or ended."""
    records = recorded.records
    assert {(r.instance, r.model, r.engine, r.servers) for r in records} == {(INSTANCE, "tiny", 0, 1)}
    assert all(r.running is not None and r.waiting is not None for r in records)
    assert max(r.running or 0 for r in records) > 3
    assert 0 < max(r.kv_usage or 0.0 for r in records) <= 1


def test_the_daemon_uses_the_tap_and_vllm_outlives_the_daemon(tapped: Tapped, tmp_path: Path) -> None:
    """The tap is taken up while it is there; a killed daemon disturbs no request; the next has it again."""
    told_in = tapped.socket.with_name("scheduler.json")  # where the plugin looks for it
    more = f'[tap]\nsocket = "{tapped.socket}"\n[scheduler]\nfile = "{told_in}"\n'
    model = train_model(tmp_path / "model")
    load_requests = requests((Phase(1.0, 240.0),), seed=21)
    with Background(tapped.server.url, load_requests, seed=21):
        for turn in ("killed", "stopped"):
            folder = tmp_path / turn
            with daemon(folder, tapped.server.url, GPU, model, tapped.environment, more) as beside:
                wait_until(
                    lambda beside=beside: beside.instance()["telemetry"]["source"] == "tap",
                    60.0,
                    beside.describe,
                )
                wait_until(
                    lambda beside=beside: beside.instance()["step"]["measured_s"] is not None,
                    60.0,
                    beside.describe,
                )
                # Whoever ran before the daemon came has to finish before requests are known one by one.
                wait_until(
                    lambda beside=beside: beside.instance()["telemetry"]["tap"]["progress"]["used"],
                    60.0,
                    beside.describe,
                )
                wait_until(
                    lambda beside=beside: (
                        beside.instance()["telemetry"]["tap"]["progress"]["matched_total"] > 0
                    ),
                    60.0,
                    beside.describe,
                )
                told = beside.instance()["telemetry"]["tap"]
                assert told["unused"] is None
                assert told["records_total"] > 0
                wait_until(
                    lambda beside=beside: (
                        beside.instance()["telemetry"]["tap"]["scheduler"] is not None
                        and beside.instance()["telemetry"]["tap"]["scheduler"]["told"]
                    ),
                    20.0,
                    beside.describe,
                )
                scheduler = beside.instance()["telemetry"]["tap"]["scheduler"]
                assert scheduler["steps_total"] > 0
                assert scheduler["faults_total"] == scheduler["message_errors_total"] == 0
                assert scheduler["aside"] is None
                if turn == "killed":
                    beside.process.send_signal(signal.SIGKILL)
                    beside.process.wait()
    served = serve(tapped.server.url, requests((Phase(1.0, 5.0),), seed=31), seed=31)
    assert {item.error for item in served} == {None}
    log = (tapped.folder / "vllm.log").read_text(errors="replace")
    assert "kvwatt tap: records go to" in log
    assert "could not be recorded" not in log
