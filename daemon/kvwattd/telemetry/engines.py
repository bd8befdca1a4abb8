"""Whose metrics page is this? Every engine's adapter behind one interface, chosen by what the page holds.

A page is taken for what its series are named after, at every scrape: a server that is replaced by another
engine is read as that, or refused, and never mistaken for the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kvwatt.state import EngineSnapshot
from kvwattd.telemetry import sglang, vllm_metrics
from kvwattd.telemetry.exposition import VLLM, MetricsError
from kvwattd.telemetry.report import LayoutReport
from kvwattd.telemetry.unsteered import LLAMA_CPP, TGI


class Parse(Protocol):
    """A page to a snapshot; raises MetricsError."""

    def __call__(
        self, text: bytes, observed_s: float, engine: str | None = None, model_name: str | None = None
    ) -> EngineSnapshot: ...


@dataclass(frozen=True)
class Adapter:
    """How the pages of one engine are read. `start`: how the lines of its series begin."""

    kind: str
    start: bytes
    parse: Parse
    self_test: Callable[[bytes], LayoutReport]


ADAPTERS = (
    Adapter("vLLM", VLLM.start, vllm_metrics.parse, vllm_metrics.self_test),
    Adapter("SGLang", sglang.WORDS.start, sglang.parse, sglang.self_test),
    *(
        Adapter(engine.kind, engine.words.start, engine.parse, engine.self_test)
        for engine in (TGI, LLAMA_CPP)
    ),
)


def adapter(text: bytes) -> Adapter:
    """Whose page it is; vLLM's where it is nobody's. Raises MetricsError for a page of several engines."""
    found = [a for a in ADAPTERS if text.startswith(a.start) or b"\n" + a.start in text]
    if len(found) > 1:
        kinds = tuple(a.kind for a in found)
        raise MetricsError("ambiguous_engine", kinds, f"the page has series of {' and '.join(kinds)}")
    return found[0] if found else ADAPTERS[0]


def parse(
    text: bytes, observed_s: float, engine: str | None = None, model_name: str | None = None
) -> EngineSnapshot:
    """The snapshot of one engine, whichever serves. Raises MetricsError."""
    return adapter(text).parse(text, observed_s, engine, model_name)


def self_test(text: bytes) -> LayoutReport:
    """Which engine and layout the page has and what it lacks. Raises MetricsError if it cannot be read."""
    return adapter(text).self_test(text)
