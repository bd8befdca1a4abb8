"""Where an instance in shadow mode meets what is followed of it: at each page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvwatt.attainment import Tally
from kvwatt.state import EngineSnapshot, Metric

if TYPE_CHECKING:
    from kvwattd.instance import InstanceRuntime


def follow(run: InstanceRuntime, page: EngineSnapshot) -> Mapping[Metric, Tally]:
    """Fold in a page; how the promises would have been kept over the operator's window."""
    seen, compiled = run.observation, run.model.compiled
    paced = seen.check.paced(compiled) if compiled is not None else None
    model = (paced, run.shape(), seen.traffic(run.slo))
    run.shadow.on_page(page, run.slo, seen.judged, seen.state(), model, run.applied.clock_mhz)
    return run.shadow.budget(page.observed_s, run.slo, run.promises.window_s)
