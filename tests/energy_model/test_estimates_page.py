"""vLLM's estimates of its own work on the metrics page: read where they are, never a reason to refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvwattd.telemetry.vllm_metrics import parse

PAGE = Path(__file__).resolve().parents[3] / "shared" / "data" / "vllm_metrics" / "v0.32.0_load.txt"
FLOPS = b"vllm:estimated_flops_per_gpu_total{"


@pytest.mark.skipif(not PAGE.exists(), reason=f"no recorded page at {PAGE}")
def test_estimates_are_read_where_they_are() -> None:
    """A page with them, one without, and one on which they are nonsense."""
    text = PAGE.read_bytes()
    page = parse(text, 0.0)
    assert page.flops_total is not None
    assert page.bytes_total is not None
    lines = text.splitlines(keepends=True)
    without = b"".join(line for line in lines if FLOPS not in line)
    assert parse(without, 0.0).flops_total is None
    broken = b"".join(
        line.rsplit(b" ", 1)[0] + b" NaN\n" if line.startswith(FLOPS) else line for line in lines
    )
    assert parse(broken, 0.0).flops_total is None
    assert parse(broken, 0.0).generation_tokens_total == page.generation_tokens_total
