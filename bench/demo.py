"""What the demonstration saves and keeps, over several seeds of its workload.

    python bench/demo.py [--quick] [--json FILE]

Each run is `kvwatt demo` as anyone starts it: the rival, driver-default clocks, serves the same requests
beside us in the same run. A busy machine makes both sides late; the demo then warns, and the run counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bars import Bar, show, write

SEEDS, QUICK_SEEDS = range(8), range(3)
METRICS = ("ttft", "tbt", "e2e")


def run(seed: int) -> dict[str, Any]:
    """One demonstration; its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.json"
        command = [sys.executable, "-m", "kvwattd", "demo", "--seed", str(seed), "--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    parser.add_argument("--quick", action="store_true", help="3 seeds instead of 8")
    arguments = parser.parse_args()
    seeds = QUICK_SEEDS if arguments.quick else SEEDS
    results = {seed: run(seed) for seed in track(seeds, description="demonstrations", transient=True)}
    shown = Table(title="kvwatt demo: energy saved against driver default, and promises kept")
    for column in ("seed", "requests", "saved", *METRICS, "tokens/J, default", "tokens/J, kvwatt"):
        shown.add_column(column, justify="right")
    for seed, result in results.items():
        ours, default = result["kvwatt"], result["baseline"]
        kept = (f"{100 * result['slo_attainment'][metric]:.1f} %" for metric in METRICS)
        efficiency = (f"{side['tokens_per_j']:.2f}" for side in (default, ours))
        saved = f"{100 * result['energy_saved_ratio']:.1f} %"
        shown.add_row(str(seed), str(ours["requests"]), saved, *kept, *efficiency)
    Console().print(shown)
    saved = [result["energy_saved_ratio"] for result in results.values()]
    worst = {m: min(result["slo_attainment"][m] for result in results.values()) for m in METRICS}
    bars = [
        Bar("default seed: energy saved", saved[0], 0.30, "higher"),
        Bar("least saved", min(saved), 0.30, "higher"),
    ]
    bars += [Bar(f"{metric} attained, worst seed", worst[metric], 0.99, "higher") for metric in METRICS]
    show(bars, "Bars")
    write(arguments.json, bars, saved=saved)
    return 0


if __name__ == "__main__":
    sys.exit(main())
