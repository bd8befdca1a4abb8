"""Every fault, really done to real processes: when clocks were at driver default, and what told of it.

    python bench/faults.py [--quick] [--only NAME] [--sequences N] [--json FILE]

A simulated server under load on a simulated GPU, the daemon and its guard as processes of their own; the
scenarios are those of the test suite (tests/faults), and here all of them. Then random sequences of faults
over guard, link and simulated GPUs, and the exposure that systemd-analyze gives the units.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bars import Bar, show, write
from kvwatt_sim.cards import load
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.sequences.run import run as random_sequences

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tests" / "faults"))

from damage import NotPossibleHere  # noqa: E402
from fault_load import Load  # noqa: E402
from fault_server import CARD, server_on, well_behaved  # noqa: E402
from fault_stage import LEASE_S, Stage, damageable  # noqa: E402
from scenario import Played, Scenario, play  # noqa: E402
from scenarios import SCENARIOS  # noqa: E402

ATTEMPTS = 3  # of one daemon after another, before what is left is given up
# What the promise says of these faults; all others have the limit that their own definition derives.
BARS = {
    "daemon SIGKILL": 0.1,
    "daemon OOM kill": 0.1,
    "daemon SIGSTOP": LEASE_S,
    "daemon's event loop stalls": LEASE_S,
    "guard SIGKILL": 3.0,
}
BOTH_KILLED = "guard and daemon SIGKILL, then the next start"
EXPOSURE = {"kvwatt.service": 1.5, "kvwatt-guard.service": 2.0}
Result = Played | str


def run(chosen: list[Scenario]) -> dict[str, Result]:
    """Each scenario once; what failed says why, and the next daemon goes on behind it."""
    results: dict[str, Result] = {}
    model = cached_model(load(CARD))
    with ExitStack() as stack:
        made = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvwatt-faults-gpus-"))
        server = stack.enter_context(server_on(Path(made) / "gpus"))
        stack.enter_context(Load(server.base_url))
        gpus = stack.enter_context(SimGpus.open(server.state))
        while left := [s for s in chosen if s.name not in results]:
            folder = Path(tempfile.mkdtemp(prefix="kvwatt-faults-"))
            with damageable(server, gpus, model, folder) as stage:
                _until_failure(left, stage, results)
            shutil.rmtree(folder, ignore_errors=True)
            well_behaved(server, gpus)
    return results


def _until_failure(scenarios: list[Scenario], stage: Stage, results: dict[str, Result]) -> None:
    for scenario in scenarios:
        try:
            results[scenario.name] = play(scenario, stage)
        except NotPossibleHere as error:
            results[scenario.name] = f"not possible here: {error}"
        except Exception as error:  # whatever went wrong is the result
            results[scenario.name] = f"FAILED: {type(error).__name__}: {str(error)[:300]!r}"
            return
        Console(stderr=True).print(f"{scenario.name}: {_seconds(results[scenario.name])}", style="dim")


def _seconds(result: Result) -> str:
    if isinstance(result, str):
        return result
    return "clock kept" if result.default_s is None else f"{result.default_s:.3f}"


def table(results: dict[str, Result]) -> Table:
    shown = Table(title="Faults", show_lines=False)
    columns = (
        "fault",
        "default after, s",
        "limit, s",
        "control again, s",
        "wrong clocks",
        "metric",
        "log line",
    )
    for column in columns:
        shown.add_column(column, overflow="fold", justify="right" if column.endswith(", s") else "left")
    for name, result in results.items():
        if isinstance(result, str):
            shown.add_row(name, result)
            continue
        limit = "-" if result.limit_s is None else f"{result.limit_s:g}"
        row = (limit, f"{result.recovered_s:.1f}", str(result.wrong_clocks), result.metric, result.log or "-")
        shown.add_row(name, _seconds(result), *row)
    return shown


def bars_of(results: dict[str, Result]) -> list[Bar]:
    """The promised times, and how many held what their definition says."""
    played = {name: result for name, result in results.items() if isinstance(result, Played)}
    bars = [
        Bar(f"{name}: driver default after, s", played[name].default_s or 0.0, limit_s, "lower")
        for name, limit_s in BARS.items()
        if name in played
    ]
    if BOTH_KILLED in played:
        bars.append(Bar(f"{BOTH_KILLED}: set before the reset", 0, 0, "lower"))
    failed = sum(isinstance(result, str) and result.startswith("FAILED") for result in results.values())
    bars.append(Bar("faults that did not end as promised", failed, 0, "lower"))
    bars.append(Bar("faults played", len(played), len(results), "higher"))
    wrong = sum(result.wrong_clocks for result in played.values())
    bars.append(Bar("wrong or unsupported clocks in the setter log", wrong, 0, "lower"))
    return bars


def sequences(count: int, seed: int) -> list[Bar]:
    """Random sequences of faults over guard, link and simulated GPUs."""
    started_s = time.monotonic()
    summary = random_sequences(count, seed, processes=2)
    took_s = time.monotonic() - started_s
    steps, calls = sum(summary.steps.values()), summary.setter_calls
    told = (
        f"{summary.sequences:,} random sequences, {steps:,} steps, {calls:,} setter calls in {took_s:.0f} s"
    )
    Console().print(told)
    for violation in summary.violations[:20]:
        Console().print(violation, markup=False)
    return [
        Bar("random fault sequences", summary.sequences, 1000, "higher"),
        Bar("violations in random fault sequences", len(summary.violations), 0, "lower"),
    ]


def exposure() -> list[Bar]:
    """What systemd-analyze gives the units; nothing where it is not installed."""
    if shutil.which("systemd-analyze") is None:
        Console().print("systemd-analyze is not here: no exposure")
        return []
    bars = []
    for unit, limit in EXPOSURE.items():
        command = ["systemd-analyze", "security", "--offline=yes", str(REPOSITORY / "systemd" / unit)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"Overall exposure level.*: ([\d.]+)", told.stdout)
        if found is None:
            Console().print(f"systemd-analyze: {told.stderr.strip() or told.stdout[-200:]}", markup=False)
            continue
        bars.append(Bar(f"systemd exposure of {unit}", float(found[1]), limit, "lower"))
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the scenarios of the test suite, 100 sequences")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it, and nothing else")
    parser.add_argument("--sequences", type=int, help="random sequences (1000; --quick 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    arguments = parser.parse_args()
    chosen = [s for s in SCENARIOS if arguments.only in s.name and (s.quick or not arguments.quick)]
    results = run(chosen)
    Console(width=200).print(table(results))
    bars = bars_of(results)
    if not arguments.only:
        bars += sequences(arguments.sequences or (100 if arguments.quick else 1000), arguments.seed)
        bars += exposure()
    show(bars, "Faults")
    played = {name: r if isinstance(r, str) else vars(r) for name, r in results.items()}
    write(arguments.json, bars, faults=played)
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
