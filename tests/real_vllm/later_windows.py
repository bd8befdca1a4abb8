"""Predicted over observed iterations per second, in windows of later load that were busy throughout.

Twice: with the load of every single step, as the tap tells it and as kvwatt predicts; and with the mean load
of a window between pages, which is all that a metrics page tells. In the second also lies that the mean of
step times is not the step time of the mean, and that a page counts a prompt when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from vllm_server import MAX_BATCHED_TOKENS

from kvwatt.compiled import CompiledModel
from kvwatt.lattice import Floats
from kvwatt.residual import expected_steps_s
from kvwatt.state import EngineSnapshot
from kvwatt.traffic import interval, kv_capacity_tokens, kv_used_tokens
from kvwattd.vllm_plugin.wire import Record

# A prompt is counted when it is done, so a window must be long beside the seconds that one takes.
POLL_S, POLLS_PER_WINDOW = 0.3, 20
WINDOW_S = POLL_S * POLLS_PER_WINDOW
LEAST_RUNNING = 2  # at every look: the engine then never idled in between


def by_page(model: CompiledModel, pages: Sequence[EngineSnapshot], clock_mhz: int) -> list[float]:
    """From the mean load between pages."""
    column = model.clocks_mhz.index(clock_mhz)
    found = []
    for start in range(0, len(pages) - POLLS_PER_WINDOW, POLLS_PER_WINDOW):
        inside = pages[start : start + POLLS_PER_WINDOW + 1]
        if min(page.running for page in inside) < LEAST_RUNNING:
            continue
        step = interval(inside[0], inside[-1])
        batch = np.full(2, np.mean([page.running for page in inside]))
        kv = np.full(2, np.mean([kv_used_tokens(page) for page in inside]))
        prompts = inside[-1].ttft_s.count - inside[0].ttft_s.count
        chunk = min(step.prompt_tokens / max(prompts, 1.0), MAX_BATCHED_TOKENS)
        plain_s, mixed_s = model.step_time_s(batch, kv, np.array([0.0, chunk]))[:, column]
        expected_s = step.iterations * plain_s + prompts * (mixed_s - plain_s)
        found.append(float(step.dt_s / expected_s))
    return found


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of one window that gave a token to somebody, n of them."""

    measured_s: Floats  # (n,)
    expected_s: Floats  # (n,)

    @property
    def ratio(self) -> float:
        """Predicted over observed iterations per second."""
        return float(self.measured_s.sum() / self.expected_s.sum())

    def covered(self, upper_factor: float) -> int:
        """How many took no longer than the bound."""
        return int(np.sum(self.measured_s <= upper_factor * self.expected_s))


def by_step(
    model: CompiledModel, page: EngineSnapshot, records: Sequence[Record], clock_mhz: int
) -> list[Steps]:
    """From the load of every step; `page` tells the size of the KV cache."""
    found = []
    for inside in _busy_windows(records):
        table = [(r.step_s, r.decodes, r.kv_usage, r.chunk_tokens) for r in inside if r.step_s and r.decodes]
        measured_s, decodes, usage, prompts = np.array(table, dtype=np.float64).T
        kv = usage * kv_capacity_tokens(page)
        expected_s = expected_steps_s(model, decodes, kv, prompts, clock_mhz, MAX_BATCHED_TOKENS)
        found.append(Steps(measured_s, expected_s))
    return found


def _busy_windows(records: Sequence[Record]) -> Iterator[list[Record]]:
    """The records of every window in which enough ran after each step, none of whose steps was lost."""
    windows: dict[int, list[Record]] = {}
    for record in records:
        windows.setdefault(int((record.sent_s - records[0].sent_s) / WINDOW_S), []).append(record)
    for inside in list(windows.values())[:-1]:  # the last is cut short
        whole = inside[-1].sequence - inside[0].sequence == len(inside) - 1
        if whole and all((record.running or 0) >= LEAST_RUNNING for record in inside):
            yield inside
