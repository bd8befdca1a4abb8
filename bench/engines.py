"""What it costs kvwatt to read SGLang's page instead of vLLM's: the same engine, told otherwise.

    python bench/engines.py [--quick] [--json FILE]

The plant is the simulated vLLM-like engine in virtual time; SGLang's own scheduling is not simulated. With
`--decode-log-interval 40`, SGLang's default, gauges are up to 40 steps old, which the page does not tell. An
idle SGLang shows its last batch for half a minute, which looks like a page that stands still: FAILSAFE.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bars import Bar, show, write
from kvwatt.state import EngineSnapshot
from kvwatt_sim.replay.controller import Controller, FixedClock, replay
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.outcome import Outcome
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.policies import kvwatt
from kvwatt_sim.replay.scenario import Case, case, plant
from kvwatt_sim.sglang_page import SglangPage
from kvwatt_sim.traces import load_azure
from kvwattd.regime import Regime
from kvwattd.telemetry.engines import parse

TRACE = Path("../shared/data/traces/AzureLLMInferenceTrace_conv_2023.csv")
KEPT = 0.99
SEED = 101  # nothing is tuned here, and nothing is scored on the seeds that are kept for it
QUICK_S, LONG_S, TAIL_S = 300.0, 900.0, 60.0
READERS = ("vLLM's page", "SGLang, interval 1", "SGLang, interval 40")


class Renamed:
    """The plant, whose page is SGLang's."""

    def __init__(self, inner: VirtualPlant, page: SglangPage) -> None:
        self._inner, self._page = inner, page

    def snapshot(self) -> EngineSnapshot:
        """The same engine as SGLang's page tells it and kvwatt's adapter reads it."""
        now = self._inner.snapshot()
        return parse(self._page.render(now), now.observed_s)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


@dataclass
class OverSglang:
    """kvwatt, reading SGLang's page."""

    inner: KvwattController
    page: SglangPage
    period_s: float = 0.1
    switch_latency_s: float = 0.2
    failsafe: int = field(default=0, init=False)
    ticks: int = field(default=0, init=False)

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        self.page.look(plant.snapshot())
        renamed = Renamed(plant, self.page)
        target = self.inner.target(now_s, renamed)  # type: ignore[arg-type] # all that it asks of a plant
        self.ticks += 1
        self.failsafe += self.inner.run.regime is Regime.FAILSAFE
        return target


def readers(setting: Case) -> dict[str, Controller]:
    """By name; none of them knows requests one by one."""
    return {
        READERS[0]: kvwatt(setting, tapped=False),
        READERS[1]: OverSglang(kvwatt(setting, tapped=False), SglangPage(1)),
        READERS[2]: OverSglang(kvwatt(setting, tapped=False), SglangPage(40)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 minutes at one load")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trace = load_azure(TRACE)
    table = Table(title=f"l20, Azure conversations, seed {SEED}")
    for column in ("load", "page", "saved %", "kept %", "FAILSAFE % of ticks"):
        table.add_column(column)
    bars: list[Bar] = []
    rows: list[dict[str, object]] = []
    for load in (0.5,) if options.quick else (0.25, 0.5, 0.75):
        whole = case(plant("l20"), trace, load, "paper", SEED)
        setting = _shortened(whole, QUICK_S if options.quick else LONG_S)
        top = _served(setting, FixedClock(None))
        for name, controller in readers(setting).items():
            outcome = _served(setting, controller)
            kept = min(outcome.attainment(setting.promises.slo).values())
            saved = 100.0 * (1.0 - outcome.energy_j / top.energy_j)
            failed = 0.0
            if isinstance(controller, OverSglang):
                failed = 100.0 * controller.failsafe / max(controller.ticks, 1)
            table.add_row(f"{load:.0%}", name, f"{saved:.1f}", f"{100 * kept:.2f}", f"{failed:.2f}")
            rows.append({"load": load, "page": name, "saved": saved, "kept": kept, "failsafe": failed})
            if name == READERS[1]:
                bars.append(Bar(f"kept by SGLang's page at {load:.0%}, interval 1", kept, KEPT, "higher"))
    Console().print(table)
    show(bars, "SGLang's page")
    write(options.json, bars, rows=rows)


def _served(setting: Case, controller: Controller) -> Outcome:
    return replay(setting.card, setting.shape, setting.requests, controller, setting.until_s)


def _shortened(setting: Case, seconds: float) -> Case:
    requests = tuple(r for r in setting.requests if r.arrival_s <= seconds)
    return replace(setting, requests=requests, until_s=min(setting.until_s, seconds + TAIL_S))


if __name__ == "__main__":
    main()
