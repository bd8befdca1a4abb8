"""Admission by reservation in online replay under KV pressure, beside vLLM's own, and with clock control.

    python bench/cap_ladder.py [--quick] [--json FILE] [--plot FILE.html] [--jobs N]
                               [--seeds 1 2 3 4] [--clock-seeds 2] [--two]
                               [--parts latency clocks]

Simulated L20 (Qwen2.5-7B), both Azure 2023 traces (expected in ../shared/data/traces), thinned to a load and
served from their start to their end. KV pressure: the pool of blocks is shrunk from 463,824 tokens to a few
ten thousand, and the load is a multiple of what that pool serves with a p99 TTFT of 3 s (see SETTINGS). Then
vLLM's scheduler (first come first served, recompute preemption of the last admitted) throws out up to a
tenth of the requests of the conversation trace; answers of the code trace are so short that it hardly can.

Windows are 200 s of arrivals; latency is arrival to last token. The steps that a preemption is worth were
tuned on seeds 101 to 108; seeds 1 to 4 are scored. Energy is that of the whole run, idle to 60 s after the
last arrival included; with clock control the promises are those of the pool at its own capacity.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from bars import Bar, show, write
from cap_ladder_runs import ARMS, CLOCK_ARMS, OURS, TRACES, VLLM, Task, Told, run_all
from kvwatt_sim.replay.scenario import SCORING_SEEDS

# Trace, tokens in the pool, load as a multiple of the pool's own capacity.
SETTINGS = (("conv", 32768, 1.4), ("conv", 16384, 1.8), ("code", 12288, 6.0), ("code", 9216, 8.0))
CLOCK_SETTINGS = (("conv", 32768, 1.0), ("conv", 32768, 1.4), ("code", 12288, 6.0))
FEWER, NO_WORSE, TOLERANCE, THROUGHPUT = 0.7, 0.9, 0.01, 0.99

Setting = tuple[str, int, float]
Rows = dict[Task, Told]


def main() -> None:
    """Run everything, print the tables and the bars, write the files."""
    options = _options()
    if not TRACES.is_dir():
        sys.exit(f"{TRACES.resolve()}: no traces here; the comparison needs the Azure 2023 CSV files")
    console = Console(width=max(Console().width, 130))
    rows: Rows = {}
    found: list[Bar] = []
    if "latency" in options.parts:
        tasks = [Task(*s, seed, arm, False) for s in SETTINGS for seed in options.seeds for arm in ARMS]
        rows |= run_all(tasks, options.jobs)
        console.print(_latency_table(rows, options.seeds))
        found += _bars(rows, options.seeds)
        if options.plot is not None:
            _plot(options.plot, rows, options.seeds)
    if "clocks" in options.parts:
        settings, seeds = CLOCK_SETTINGS[: 1 if options.quick else None], options.seeds[: options.clock_seeds]
        arms = CLOCK_ARMS[: 2 if options.two else None]
        cells = product(settings, seeds, arms, (False, True))
        rows |= run_all([Task(*s, seed, arm, clocks) for s, seed, arm, clocks in cells], options.jobs)
        console.print(_energy_table(rows, settings, seeds, arms))
        found += _energy_bars(rows, settings, seeds)
    show(found, f"Admission under KV pressure, seeds {' '.join(map(str, options.seeds))}")
    write(options.json, found, rows=[row.as_json(task) for task, row in rows.items()])


def _of(rows: Rows, setting: Setting, arm: str, seeds: Sequence[int], clocks: bool = False) -> list[Told]:
    return [rows[Task(*setting, seed, arm, clocks)] for seed in seeds]


def _name(setting: Setting) -> str:
    trace, tokens, load = setting
    return f"{trace} {tokens // 1024}k x{load:g}"


def _ratios(ours: Sequence[Told], theirs: Sequence[Told], what: str) -> list[float]:
    """Per window of every seed ours over theirs."""
    return [
        getattr(a, what)[window] / getattr(b, what)[window]
        for a, b in zip(ours, theirs, strict=True)
        for window in range(len(b.mean_s))
    ]


def _share(ratios: Sequence[float], tolerance: float = 0.0) -> float:
    return fmean(ratio <= 1.0 + tolerance for ratio in ratios)


def _latency_table(rows: Rows, seeds: Sequence[int]) -> Table:
    table = Table(title="windows no worse than vLLM: strictly / within 0.1 % / within 1 %, %")
    columns = ("setting", "admission", "preempted", "mean s", "p99 s", "TTFT p99 s", "windows: mean")
    for column in (*columns, "windows: p99", "worst window", "computed", "backlog"):
        table.add_column(column, justify="right" if column not in columns[:2] else "left")
    for setting in SETTINGS:
        base = _of(rows, setting, VLLM, seeds)
        for arm in ARMS:
            mine = _of(rows, setting, arm, seeds)
            mean, p99 = (_ratios(mine, base, what) for what in ("mean_s", "p99_s"))
            shares = [
                " / ".join(f"{100 * _share(r, t):.0f}" for t in (0.0, 0.001, TOLERANCE)) for r in (mean, p99)
            ]
            table.add_row(
                _name(setting) if arm == VLLM else "",
                arm,
                f"{100 * sum(m.preemptions for m in mine) / sum(m.requests for m in mine):.2f} %",
                f"{fmean(m.all_mean_s for m in mine):.2f}",
                f"{fmean(m.all_p99_s for m in mine):.1f}",
                f"{fmean(m.ttft_p99_s for m in mine):.2f}",
                *(shares if arm != VLLM else ("", "")),
                f"x{max(mean):.3f}, x{max(p99):.3f}" if arm != VLLM else "",
                f"x{sum(m.computed for m in mine) / sum(b.computed for b in base):.3f}",
                f"x{_throughput(mine, base):.3f}",
            )
        table.add_section()
    return table


def _throughput(mine: Sequence[Told], base: Sequence[Told]) -> float:
    """Tokens a second of a backlog, all there at once, beside vLLM's."""
    return fmean((m.backlog_per_s or 0.0) / (b.backlog_per_s or 1.0) for m, b in zip(mine, base, strict=True))


def _saved(rows: Rows, setting: Setting, arm: str, clocks: bool, seeds: Sequence[int]) -> float:
    """Percent of the energy of vLLM's admission at driver default."""
    base = _of(rows, setting, VLLM, seeds)
    mine = _of(rows, setting, arm, seeds, clocks)
    return 100.0 * (1.0 - fmean(m.energy_j / b.energy_j for m, b in zip(mine, base, strict=True)))


def _energy_table(
    rows: Rows, settings: Sequence[Setting], seeds: Sequence[int], arms: Sequence[str]
) -> Table:
    table = Table(title=f"energy saved against vLLM at driver default, seeds {' '.join(map(str, seeds))}")
    columns = ("setting", "admission", "clocks", "saved %", "kept %", "preempted", "mean s", "p99 s")
    for column in columns:
        table.add_column(column, justify="right" if column not in columns[:3] else "left")
    for setting in settings:
        for arm in arms:
            for clocks in (False, True):
                mine = _of(rows, setting, arm, seeds, clocks)
                table.add_row(
                    _name(setting),
                    arm,
                    "kvwatt" if clocks else "default",
                    f"{_saved(rows, setting, arm, clocks, seeds):.2f}",
                    f"{100 * min(m.kept for m in mine):.2f}",
                    str(sum(m.preemptions for m in mine)),
                    f"{fmean(m.all_mean_s for m in mine):.2f}",
                    f"{fmean(m.all_p99_s for m in mine):.1f}",
                )
        table.add_section()
    return table


def _bars(rows: Rows, seeds: Sequence[int]) -> list[Bar]:
    out = []
    for setting in SETTINGS:
        base, mine = _of(rows, setting, VLLM, seeds), _of(rows, setting, OURS, seeds)
        cut = 1.0 - sum(m.preemptions for m in mine) / max(sum(b.preemptions for b in base), 1)
        name = _name(setting)
        out.append(Bar(f"{name}: preemptions avoided", cut, FEWER, "higher"))
        for what, told in (("mean_s", "mean"), ("p99_s", "p99")):
            ratios = _ratios(mine, base, what)
            limit = f"{name}: windows with {told} latency no worse"
            out.append(Bar(limit, _share(ratios), NO_WORSE, "higher"))
            out.append(Bar(f"{limit}, within 1 %", _share(ratios, TOLERANCE), NO_WORSE, "higher"))
        out.append(Bar(f"{name}: throughput of a backlog", _throughput(mine, base), THROUGHPUT, "higher"))
    return out


def _energy_bars(rows: Rows, settings: Sequence[Setting], seeds: Sequence[int]) -> list[Bar]:
    """With the ladder clock control saves no less than without."""
    return [
        Bar(
            f"{_name(s)}: points saved with clock control, more than with vLLM's admission",
            _saved(rows, s, OURS, True, seeds) - _saved(rows, s, VLLM, True, seeds),
            0.0,
            "higher",
        )
        for s in settings
    ]


def _plot(path: Path, rows: Rows, seeds: Sequence[int]) -> None:
    """Latency of every window over vLLM's, arm by arm."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm in ARMS:
        points = [
            (_name(s), ratio)
            for s in SETTINGS
            for ratio in _ratios(_of(rows, s, arm, seeds), _of(rows, s, VLLM, seeds), "p99_s")
        ]
        if arm != VLLM:
            names, ratios = zip(*points, strict=True)
            figure.add_box(x=names, y=ratios, name=arm, boxpoints="all")
    figure.add_hline(y=1.0, line_dash="dot")
    figure.update_layout(
        boxmode="group", yaxis_title="p99 latency over vLLM's", title="Windows of 200 s under KV pressure"
    )
    figure.write_html(path, include_plotlyjs=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, one setting with clock control")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=("latency", "clocks"), choices=("latency", "clocks"))
    parser.add_argument("--clock-seeds", type=int, default=2, help="how many of the seeds with clock control")
    parser.add_argument(
        "--two", action="store_true", help="with clock control vLLM's admission and ours alone"
    )
    parser.add_argument("--seeds", nargs="+", type=int)
    options = parser.parse_args()
    options.seeds = options.seeds or list(SCORING_SEEDS[:1] if options.quick else SCORING_SEEDS)
    return options


if __name__ == "__main__":
    main()
