"""A recording written as the daemon writes it, and read back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvwatt.state import EngineShape, GpuSample, Slo, SloTarget
from kvwatt_sim.recording import as_trace, load_recording
from kvwatt_sim.traces import TraceError
from kvwattd.recording.lines import GpuLine, Line, RequestLine, RunLine, encode
from kvwattd.recording.taking import GPU_EVERY_S, Taking
from kvwattd.recording.writer import QUEUE_LINES, Recorder
from kvwattd.telemetry.gpu import GpuInfo
from kvwattd.vllm_plugin.wire import Finished

WALL_S = 1_700_000_000.0
DAY_S = 86_400.0
SHAPE = EngineShape(16, 1000, 64, 2048)
SLO = Slo(tbt=SloTarget(0.2))


def gpu(index: int) -> GpuInfo:
    return GpuInfo(f"GPU-{index}", index, "NVIDIA L20", (900, 2520), 2520, 275.0, False, True, "550")


def finished(output: int = 11, arrival_s: float | None = WALL_S - 5.0, reason: int = 0) -> Finished:
    return Finished(reason, 100, output, None, 0, 4.0, 0.5, 0.5, 3.0, arrival_s)


def sample(uuid: str, energy_j: float) -> GpuSample:
    return GpuSample(0.0, uuid, 1200, 90.0, energy_j, 40.0, 1.0, 0)


def lines_of(instance: str = "a") -> tuple[list[Line], Taking]:
    lines: list[Line] = []
    taking = Taking(instance, lines.append)
    taking.on_shape(SHAPE, "qwen", (gpu(0), gpu(1)), SLO, WALL_S)
    return lines, taking


def test_what_is_taken_is_what_was_served() -> None:
    """Latencies are the tap's, energy counts from the run's begin over all GPUs, aborts are left out."""
    lines, taking = lines_of()
    taking.on_finished([finished(), finished(output=1), finished(reason=2)], WALL_S)
    for second in range(25):
        taking.on_gpu(
            {f"GPU-{i}": sample(f"GPU-{i}", 1000.0 * i + 90.0 * second) for i in (0, 1)}, WALL_S + second
        )
    requests = [line for line in lines if isinstance(line, RequestLine)]
    readings = [line for line in lines if isinstance(line, GpuLine)]
    assert isinstance(lines[0], RunLine)
    assert (lines[0].gpus, lines[0].promised_s) == (2, {"tbt": 0.2})
    assert [(r.ttft_s, r.tbt_s, r.e2e_s, r.arrival_s) for r in requests] == [
        (1.0, pytest.approx(0.3), 4.0, WALL_S - 5.0),
        (1.0, None, 4.0, WALL_S - 5.0),
    ]
    assert [g.at_s - WALL_S for g in readings] == [0.0, GPU_EVERY_S, 2 * GPU_EVERY_S]
    assert [g.energy_j for g in readings] == pytest.approx([0.0, 1800.0, 3600.0])


def test_a_run_line_comes_once_and_when_it_changes() -> None:
    """The same engine is told once; another shape begins another run."""
    lines, taking = lines_of()
    taking.on_shape(SHAPE, "qwen", (gpu(0), gpu(1)), SLO, WALL_S + 1.0)
    taking.on_shape(EngineShape(16, 500, 64, 2048), "qwen", (gpu(0), gpu(1)), SLO, WALL_S + 2.0)
    assert [line.at_s for line in lines if isinstance(line, RunLine)] == [WALL_S, WALL_S + 2.0]


def test_a_server_with_another_clock_is_not_believed() -> None:
    """An arrival time that is hours off is counted back from now instead."""
    lines, taking = lines_of()
    taking.on_finished([finished(arrival_s=5.0), finished(arrival_s=None)], WALL_S)
    assert [r.arrival_s for r in lines if isinstance(r, RequestLine)] == [WALL_S - 4.0] * 2


def test_written_days_are_read_back(tmp_path: Path) -> None:
    """Lines go to the file of their day and come back as requests, energy and a trace."""
    lines, taking = lines_of()
    taking.on_finished([finished(arrival_s=WALL_S - 2.0), finished(arrival_s=WALL_S - 5.0)], WALL_S)
    for second in (0.0, 20.0, DAY_S):
        taking.on_gpu({"GPU-0": sample("GPU-0", 100.0 * second)}, WALL_S + second)
    recorder = Recorder(tmp_path / "records", 1_000_000)
    recorder.start()
    for line in lines:
        recorder.put(line)
    recorder.close()
    assert (recorder.written, recorder.dropped, recorder.fault) == (len(lines), 0, None)
    assert sorted(p.name for p in (tmp_path / "records").iterdir()) == [
        "kvwatt-2023-11-14.jsonl",
        "kvwatt-2023-11-15.jsonl",
    ]
    (recorded,) = load_recording(tmp_path / "records")
    assert recorded.energy_j == pytest.approx(100.0 * DAY_S)
    assert [(r.arrival_s, r.prompt_tokens) for r in as_trace([recorded])] == [(0.0, 100), (3.0, 100)]


def test_a_cut_last_line_is_left_out_and_a_broken_one_is_told(tmp_path: Path) -> None:
    """A daemon killed in mid-write costs its last line; anything else is told with file and line."""
    lines, taking = lines_of()
    taking.on_finished([finished(), finished()], WALL_S)
    file = tmp_path / "kvwatt-2023-11-14.jsonl"
    whole = b"".join(map(encode, lines))
    file.write_bytes(whole[:-20])
    assert len(load_recording(file)[0].requests) == 1
    file.write_bytes(whole.replace(b'"output_tokens":11', b'"output_tokens":-1', 1))
    with pytest.raises(TraceError, match=r"kvwatt-2023-11-14.jsonl: line 2: output_tokens -1"):
        load_recording(file)


def test_requests_without_a_run_line_are_refused(tmp_path: Path) -> None:
    """Nobody knows what served them."""
    lines, taking = lines_of()
    taking.on_finished([finished()], WALL_S)
    (tmp_path / "x").write_bytes(b"".join(encode(line) for line in lines[1:]))
    with pytest.raises(TraceError, match=r"instance 'a' has requests or readings but no run line"):
        load_recording(tmp_path / "x")


def test_the_folder_stays_within_its_bound(tmp_path: Path) -> None:
    """The oldest days are deleted first; other files are left alone; a day that is too large ends early."""
    (tmp_path / "notes.txt").write_text("mine")
    recorder = Recorder(tmp_path, 4000)
    recorder.start()
    for day in range(10):
        for _ in range(5):
            recorder.put(GpuLine("a", WALL_S + day * DAY_S, 1200, 90.0, 1.0))
    for _ in range(100):
        recorder.put(GpuLine("a", WALL_S + 20 * DAY_S, 1200, 90.0, 1.0))
    recorder.close()
    days = sorted(p for p in tmp_path.iterdir() if p.suffix == ".jsonl")
    assert 0 < sum(p.stat().st_size for p in days) <= 4000
    assert days[0].name > "kvwatt-2023-11-14.jsonl"
    assert (tmp_path / "notes.txt").exists()


def test_a_stuck_disk_delays_nobody(tmp_path: Path) -> None:
    """With a writer that hangs, putting returns all the same and what does not fit is counted."""
    gate = threading.Event()

    class Stuck(Recorder):
        def _write(self, batch: list[Line]) -> None:
            gate.wait(10.0)

    recorder = Stuck(tmp_path, 10**9)
    recorder.start()
    for _ in range(2 * QUEUE_LINES):
        recorder.put(GpuLine("a", WALL_S, 1200, 90.0, 1.0))
    assert recorder.dropped >= QUEUE_LINES - 2000
    gate.set()
    recorder.close()


def test_a_disk_that_fails_is_told_and_survived(tmp_path: Path) -> None:
    """Lines lost to an error are counted, the fault is shown, and writing goes on when the cause is gone."""
    folder = tmp_path / "records"
    recorder = Recorder(folder, 10**6)
    recorder.start()
    folder.rmdir()
    recorder.put(GpuLine("a", WALL_S, 1200, 90.0, 1.0))
    _until(lambda: recorder.fault is not None)
    assert recorder.fault is not None and "No such file" in recorder.fault
    folder.mkdir()
    recorder.put(GpuLine("a", WALL_S, 1200, 90.0, 1.0))
    _until(lambda: recorder.written == 1)
    assert (recorder.written, recorder.dropped) == (1, 1)
    assert recorder.fault is None
    recorder.close()


def _until(true: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
