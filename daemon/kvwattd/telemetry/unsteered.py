"""Engines that are recognised and not steered: their pages do not tell what a safe decision needs.

They are named, so that the operator reads why the clocks stay at driver default, not that a series of vLLM
is missing. Sources: docs/compatibility.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvwatt.state import EngineSnapshot
from kvwattd.telemetry.exposition import MetricsError, Vocabulary, samples
from kvwattd.telemetry.report import LayoutReport


@dataclass(frozen=True)
class Unsteered:
    """One such engine. `lacks`: what no version of its page is known to tell."""

    kind: str
    words: Vocabulary
    lacks: tuple[str, ...]

    def parse(
        self, text: bytes, observed_s: float, engine: str | None = None, model_name: str | None = None
    ) -> EngineSnapshot:
        """Always raises MetricsError."""
        list(samples(text, self.words))  # a page that cannot be read says so first
        detail = f"{self.kind} is not steered, it does not tell: {', '.join(self.lacks)}"
        raise MetricsError("missing_series", self.lacks, detail)

    def self_test(self, text: bytes) -> LayoutReport:
        """What the page lacks. Raises MetricsError for a page that cannot be read."""
        list(samples(text, self.words))
        return LayoutReport(
            layout=None,
            versions="none of " + self.kind,
            missing=self.lacks,
            absent_optional=(),
            engines=(),
            kind=self.kind,
        )


TGI = Unsteered(
    "TGI",
    Vocabulary("tgi_", ("queue_size", "batch_current_size"), ()),
    ("KV cache size and use", "time to first token", "tokens before a request ends"),
)
LLAMA_CPP = Unsteered(
    "llama.cpp",
    Vocabulary("llamacpp:", ("requests_processing", "requests_deferred"), ()),
    ("TTFT, TBT and E2E (no histograms)", "KV cache size", "lengths of requests", "finished requests"),
)
