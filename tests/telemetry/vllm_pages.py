"""Pages for the tests: real ones as vLLM served them, and one in the vocabulary of each release."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "vllm_metrics"
REAL = ("v0.27.1", "v0.31.0", "v0.32.0_idle", "v0.32.0_load", "v0.32.0_kv_pressure")
BUSY = "v0.32.0_load"

OLD_NAMES = {
    "v0.16": {"num_requests_waiting_by_reason": None},
    "v0.12": {"num_requests_waiting_by_reason": None, "prompt_tokens_cached_total": None},
    "v0.10": {
        "num_requests_waiting_by_reason": None,
        "prompt_tokens_cached_total": None,
        "request_time_per_output_token_seconds": None,
        "engine_sleep_state": None,
    },
    "v0.8": {
        "num_requests_waiting_by_reason": None,
        "prompt_tokens_cached_total": None,
        "request_time_per_output_token_seconds": None,
        "engine_sleep_state": None,
        "kv_cache_usage_perc": "gpu_cache_usage_perc",
        "prefix_cache_hits_total": "gpu_prefix_cache_hits_total",
        "inter_token_latency_seconds": "time_per_output_token_seconds",
    },
}


def read_page(name: str = BUSY) -> bytes:
    """A page as vLLM served it; skips where the shared data is not beside the repository."""
    path = PAGES / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"no real vLLM pages at {PAGES}")
    return path.read_bytes()


def without(page: bytes, name: str) -> bytes:
    """The page without one series."""
    return renamed(page, name, None)


def renamed(page: bytes, name: str, new: str | None) -> bytes:
    """The page with one series under another name, or without it."""
    pattern = rb"(?m)^vllm:%s((?:_bucket|_sum|_count|_created)?\{.*\n)" % re.escape(name.encode())
    changed, count = re.subn(pattern, b"" if new is None else b"vllm:%s\\1" % new.encode(), page)
    assert count > 0, f"the page has no {name}"
    return changed


def with_value(page: bytes, line_start: str, value: str) -> bytes:
    """The page with another value on the one line that starts so."""
    pattern = rb"(?m)^(%s.*) \S+$" % re.escape(line_start.encode())
    changed, count = re.subn(pattern, rb"\1 " + value.encode(), page)
    assert count == 1, f"{count} lines start with {line_start}"
    return changed


def in_layout(layout: str) -> bytes:
    """The busy page in the vocabulary of an older release."""
    page = read_page()
    for name, new in OLD_NAMES[layout].items():
        page = renamed(page, name, new)
    return page


def second_engine(page: bytes) -> bytes:
    """The page of a data-parallel server: the same again under engine 1, with other values."""
    lines = [line for line in page.splitlines(keepends=True) if line.startswith(b"vllm:")]
    other = b"".join(lines).replace(b'engine="0"', b'engine="1"')
    return page + with_value(other, "vllm:num_requests_running", "7.0")
