"""What runs inside vLLM: a record per step, never a wait, never an error for what a version does not tell."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tap_records import CONFIG, MODEL, finished_request, iteration, scheduler

from kvwattd.telemetry.tap import parse
from kvwattd.vllm_plugin.recorder import KEPT_FINISHED, Recorder
from kvwattd.vllm_plugin.sender import KEPT
from kvwattd.vllm_plugin.wire import MAX_BYTES, MAX_FINISHED, Record


class Listener:
    """The daemon's end, read on demand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def raw(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 20))
            except BlockingIOError:
                return found

    def records(self) -> list[Record]:
        return [parse(datagram) for datagram in self.raw()]

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path / "tap.sock")
    yield made
    made.close()


@pytest.fixture
def recorder(listener: Listener) -> Iterator[Recorder]:
    made = Recorder(CONFIG, str(listener.path), instance="chat")
    yield made
    made.close()


def test_a_step_is_one_record_with_what_vllm_told(recorder: Recorder, listener: Listener) -> None:
    """Batch, lengths, cache and the step's time, which is the smallest inter-token latency."""
    recorder.record(scheduler(), iteration(finished_requests=[finished_request()]), engine=2)
    (got,) = listener.records()
    assert (got.instance, got.model, got.engine, got.sequence) == ("chat", MODEL, 2, 1)
    assert (got.running, got.waiting, got.kv_usage) == (3, 2, 0.25)
    assert (got.step_s, got.decodes, got.itl_sum_s) == (0.02, 2, pytest.approx(0.09))
    assert (got.generation_tokens, got.prompt_tokens, got.first_tokens_s) == (3, 100, [0.4])
    (done,) = got.finished
    assert (done.prompt_tokens, done.output_tokens, done.max_tokens, done.cached_tokens) == (120, 40, 64, 20)
    assert (done.e2e_s, done.queued_s, done.prefill_s, done.decode_s) == (2.0, 0.1, 0.4, 1.5)
    assert done.reason == 1


def test_no_request_is_named(recorder: Recorder, listener: Listener) -> None:
    """Neither text nor an identifier leaves vLLM."""
    recorder.record(scheduler(), iteration(finished_requests=[finished_request()]), engine=0)
    (datagram,) = listener.raw()
    assert b"secret" not in datagram


def test_the_step_s_prompt_chunk_is_told_where_vllm_tells_it(recorder: Recorder, listener: Listener) -> None:
    """With iteration details the prompt tokens of the very step are known."""
    details = SimpleNamespace(num_ctx_tokens=512)
    recorder.record(scheduler(iteration_details=details), iteration(), engine=0)
    assert listener.records()[0].chunk_tokens == 512


@pytest.mark.parametrize("scheduler_stats", [None, SimpleNamespace(), scheduler()])
@pytest.mark.parametrize("iteration_stats", [None, SimpleNamespace(), iteration()])
def test_missing_statistics_are_unknown_and_no_error(
    recorder: Recorder, listener: Listener, scheduler_stats: object, iteration_stats: object
) -> None:
    """vLLM's classes are no stable interface: a field that is gone leaves a record without it."""
    recorder.record(scheduler_stats, iteration_stats, engine=0)
    (got,) = listener.records()
    assert (got.running is None) == (getattr(scheduler_stats, "num_running_reqs", None) is None)
    assert (got.step_s is None) == (not hasattr(iteration_stats, "inter_token_latencies_iter"))


def test_a_finished_request_without_fields_is_told_with_nothing(
    recorder: Recorder, listener: Listener
) -> None:
    """Whatever a version calls them, lengths that are not there are zero and limits unknown."""
    recorder.record(scheduler(), iteration(finished_requests=[SimpleNamespace()]), engine=0)
    (done,) = listener.records()[0].finished
    assert (done.prompt_tokens, done.max_tokens, done.cached_tokens) == (0, None, None)


def test_nobody_listening_means_dropped_and_counted(tmp_path: Path) -> None:
    """Without a daemon steps are dropped; one that starts later gets what comes then, and the count."""
    path = tmp_path / "tap.sock"
    recorder = Recorder(CONFIG, str(path))
    for _ in range(5):
        recorder.record(scheduler(), iteration(), engine=0)
    assert recorder.dropped == 5
    late = Listener(path)
    later = Recorder(CONFIG, str(path))
    later.record(scheduler(), iteration(), engine=0)
    assert later.dropped == 0
    assert len(late.records()) == 1
    recorder.close()
    later.close()
    late.close()


def test_a_daemon_that_went_away_is_not_waited_for(recorder: Recorder, listener: Listener) -> None:
    """A closed socket drops records; none is sent into the void twice."""
    recorder.record(scheduler(), iteration(), engine=0)
    listener.close()
    recorder.record(scheduler(), iteration(), engine=0)
    recorder.record(scheduler(), iteration(), engine=0)
    assert recorder.dropped == 2


def test_a_daemon_that_reads_nothing_blocks_nothing(recorder: Recorder, listener: Listener) -> None:
    """Behind a full queue records are kept, then dropped; what finished meanwhile comes later, all of it."""
    for _ in range(2000):
        recorder.record(scheduler(), iteration(), engine=0)
    dropped = recorder.dropped
    assert 2000 - 2 * KEPT < dropped < 2000
    for _ in range(10):
        recorder.record(scheduler(), iteration(finished_requests=[finished_request()]), engine=0)
    got = listener.records()
    for _ in range(60):
        recorder.flush()
        got += listener.records()
    recorder.record(scheduler(), iteration(), engine=0)
    got += listener.records()
    assert got[-1].generation_tokens_total == 3 * 2011
    assert got[-1].dropped_total == recorder.dropped
    assert sum(len(item.finished) for item in got) == 10


def test_a_daemon_that_is_late_gets_every_step_in_order(recorder: Recorder, listener: Listener) -> None:
    """The kernel queues ten datagrams on many hosts; a stall of a hundred steps loses none."""
    got: list[Record] = []
    for _ in range(100):
        recorder.record(scheduler(), iteration(), engine=0)
    for _ in range(40):
        got += listener.records()
        recorder.flush()
    assert [item.sequence for item in got] == list(range(1, 101))
    assert recorder.dropped == 0


def test_many_finished_requests_are_spread_over_records(recorder: Recorder, listener: Listener) -> None:
    """No datagram grows beyond its limit, however much happens in one step; the rest follows."""
    crowd = [finished_request(e2e_latency=float(i)) for i in range(2 * MAX_FINISHED)]
    waits = [0.1] * 5000
    recorder.record(
        scheduler(), iteration(finished_requests=crowd, time_to_first_tokens_iter=waits), engine=0
    )
    recorder.record(scheduler(), iteration(), engine=0)
    raw = listener.raw()
    assert max(len(datagram) for datagram in raw) < MAX_BYTES
    got = [item.e2e_s for datagram in raw for item in parse(datagram).finished]
    assert got == [float(i) for i in range(2 * MAX_FINISHED)]


def test_what_is_kept_for_later_is_bounded(recorder: Recorder, listener: Listener) -> None:
    """A flood of finished requests costs the oldest, not vLLM's memory."""
    flood = [finished_request() for _ in range(3 * KEPT_FINISHED)]
    recorder.record(scheduler(), iteration(finished_requests=flood), engine=0)
    for _ in range(8):
        recorder.record(scheduler(), iteration(), engine=0)
    got = listener.records()
    assert sum(len(item.finished) for item in got) == KEPT_FINISHED
    assert got[-1].finished_total == 3 * KEPT_FINISHED


def test_engines_of_one_server_are_told_apart(recorder: Recorder, listener: Listener) -> None:
    """Data parallel: each engine's records are numbered and summed on their own, so that none seems lost."""
    for engine in (0, 1, 1, 0, 1):
        recorder.record(scheduler(), iteration(), engine=engine)
    got = [(item.engine, item.sequence, item.generation_tokens_total) for item in listener.records()]
    assert got == [(0, 1, 3), (1, 1, 3), (1, 2, 6), (0, 2, 6), (1, 3, 9)]


def test_the_instance_s_name_comes_from_the_environment(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server is told its name where model and engine do not say it."""
    monkeypatch.setenv("KVWATT_TAP_INSTANCE", "code")
    recorder = Recorder(CONFIG, str(listener.path))
    recorder.record(scheduler(), iteration(), engine=0)
    recorder.close()
    assert listener.records()[0].instance == "code"


def test_starts_are_told_with_arrival_and_prompts(recorder: Recorder, listener: Listener) -> None:
    """By the server's wall clock, from which its latencies count; a request's end names the same arrival."""
    first = iteration(iteration_timestamp=1_700_000_010.0, time_to_first_tokens_iter=[0.4, 0.25])
    recorder.record(scheduler(), first, engine=0)
    last = iteration(
        iteration_timestamp=1_700_000_011.6,
        time_to_first_tokens_iter=[],
        finished_requests=[finished_request(e2e_latency=2.0)],
    )
    recorder.record(scheduler(), last, engine=0)
    began, over = listener.records()
    (group,) = began.started
    assert (group.at_s, group.prompt_tokens, group.ttft_s) == (1_700_000_010.0, 120, [0.4, 0.25])
    assert group.decode_step == began.decode_steps_total == 1
    assert over.started == []
    assert over.finished[0].arrival_s == pytest.approx(group.at_s - group.ttft_s[0], abs=1e-5)


def test_a_version_that_does_not_tell_when_tells_no_starts(recorder: Recorder, listener: Listener) -> None:
    """Without a time of the step, first tokens are told as waits alone."""
    recorder.record(scheduler(), iteration(finished_requests=[finished_request()]), engine=0)
    (got,) = listener.records()
    assert got.started == []
    assert got.first_tokens_s == [0.4]
    assert got.finished[0].arrival_s is None


def test_starts_behind_a_full_queue_come_later(recorder: Recorder, listener: Listener) -> None:
    """A dropped record loses no request: its start goes with a later record, with the step it was in."""
    steps = 2000
    for step in range(steps):
        recorder.record(scheduler(), iteration(iteration_timestamp=1.7e9 + step), engine=0)
    got: list[Record] = []
    for _ in range(120):
        got += listener.records()
        recorder.flush()
    for step in range(steps, steps + 10):
        recorder.record(scheduler(), iteration(iteration_timestamp=1.7e9 + step), engine=0)
        got += listener.records()
    assert recorder.dropped > 0
    told = [(group.at_s - 1.7e9, group.decode_step) for item in got for group in item.started]
    assert told == [(float(step), step + 1) for step in range(steps + 10)]
    assert got[-1].decode_steps_total == steps + 10
