"""The worker process: a job in, a verdict and perhaps a model out; and how it fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from refit_world import served, slower

from kvwatt import artifact
from kvwatt.samples import Sample, sample_values
from kvwatt.state import EngineShape
from kvwattd.refit_worker import JOB, MODEL, RESULT, Job, Result, Shape
from kvwattd.refits import run_worker

CLOCKS = (600, 1000, 2000)
SHAPE = Shape(block_size=16, num_blocks=20_001, max_num_seqs=128, max_num_batched_tokens=2048, tp=1)


def job(folder: Path, model: Path, samples: list[Sample]) -> Path:
    folder.mkdir()
    values = [sample_values(sample) for sample in samples]
    text = Job(
        shipped=model, champion=model, seen_through=0, samples=values, clocks_mhz=CLOCKS, shape=SHAPE
    ).model_dump_json()
    (folder / JOB).write_text(text)
    return folder


def imports_lightgbm(model: Path) -> bool:
    """Whether reading the compiled model does, in a process of its own."""
    reading = (
        "import sys; from pathlib import Path; from kvwatt.artifact import load_compiled;"
        "from kvwatt.state import EngineShape;"
        f"load_compiled(Path(sys.argv[1]), {CLOCKS}, EngineShape(**{SHAPE.model_dump()}));"
        "sys.exit('lightgbm' in sys.modules)"
    )
    return bool(subprocess.run([sys.executable, "-c", reading, str(model)]).returncode)


async def test_a_challenger_that_wins_is_ready_to_be_read(
    ship: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The artifact is whole and its table compiled: the daemon needs no LightGBM to take it up."""
    folder = job(tmp_path / "job", ship(tmp_path / "model"), served(11, 300, slower))
    assert await run_worker(folder) is None
    result = Result.model_validate_json((folder / RESULT).read_bytes())
    assert result.outcome == "promoted", result
    artifact.verify(folder / MODEL)
    assert not imports_lightgbm(folder / MODEL)
    compiled = artifact.load_compiled(folder / MODEL, CLOCKS, EngineShape(**SHAPE.model_dump()))
    assert compiled.clocks_mhz == CLOCKS


async def test_a_challenger_that_loses_leaves_no_model(ship: Callable[[Path], Path], tmp_path: Path) -> None:
    """Only the verdict is written."""
    folder = job(tmp_path / "job", ship(tmp_path / "model"), served(12, 200))
    assert await run_worker(folder) is None
    result = Result.model_validate_json((folder / RESULT).read_bytes())
    assert result.outcome == "kept" and result.challenger_error is not None
    assert not (folder / MODEL).exists()


async def test_a_damaged_champion_is_a_result_with_its_reason(
    ship: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The reason names the file."""
    model = ship(tmp_path / "model")
    (model / artifact.STEP_TREES).write_text("tree\n")
    folder = job(tmp_path / "job", model, served(13, 100))
    assert await run_worker(folder) is None
    result = Result.model_validate_json((folder / RESULT).read_bytes())
    assert result.outcome == "failed" and artifact.STEP_TREES in result.reason


async def test_a_job_that_cannot_be_read_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    """No result, but what the worker said."""
    (tmp_path / JOB).write_text("{}")
    failure = await run_worker(tmp_path)
    assert failure is not None and "ended with 1" in failure


async def test_a_worker_that_takes_too_long_is_ended(ship: Callable[[Path], Path], tmp_path: Path) -> None:
    """The deadline of the daemon holds whatever the worker does."""
    folder = job(tmp_path / "job", ship(tmp_path / "model"), served(14, 200))
    failure = await run_worker(folder, deadline_s=0.05)
    assert failure is not None and "longer than 0.05 s" in failure
    assert not (folder / RESULT).exists()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Beyond the limit an allocation fails instead of pushing the server out of memory."""
    greedy = (
        "from kvwattd.refit_worker import limit; limit(memory_bytes=1 << 30);"
        "import os; assert os.nice(0) == 19;"
        "assert open('/proc/self/oom_score_adj').read() == '1000\\n'; bytearray(2 << 30)"
    )
    done = subprocess.run([sys.executable, "-c", greedy], capture_output=True, text=True)
    assert done.returncode == 1 and "MemoryError" in done.stderr
