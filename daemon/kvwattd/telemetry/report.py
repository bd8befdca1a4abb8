"""What one look at an engine's metrics page says about the page itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """What a page offers. Control is refused unless `layout` is set."""

    layout: str | None
    versions: str  # of the layout, or of the closest one
    missing: tuple[str, ...]  # what the closest layout needs and the page lacks
    absent_optional: tuple[str, ...]
    engines: tuple[tuple[str, str], ...]  # (engine, model_name) pairs on the page
    kind: str = "vLLM"
    caveats: tuple[str, ...] = ()  # what this engine does not tell, and what follows

    @property
    def accepted(self) -> bool:
        """Whether the page can be used for control."""
        return self.layout is not None
