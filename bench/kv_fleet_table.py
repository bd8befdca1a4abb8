"""The fleet's part of bench/kv_budget.py: four servers' pools that come and go, against four that stay."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table

import kv_fleet
from bars import Bar
from kv_policies import (
    KV_BAR,
    PARTS,
    QUANTILE,
    SLO,
    TALK,
    TUNING_SEED,
    Fixed,
    Moving,
    fixed_of,
    reuse_in,
    setting,
    step_of,
)
from kvwatt.kv_budget import Reuse
from kvwatt_sim.prefix.conversations import conversations


def tuned() -> tuple[Fixed, Reuse]:
    """The smallest fixed part that keeps the promises on the tuning seed with four members, and the reuse."""
    card, shape = setting()
    asked = conversations(kv_fleet.rate, kv_fleet.CYCLE_S, TUNING_SEED, TALK)
    reuse = reuse_in(asked, shape)
    for part in PARTS:
        fixed = fixed_of(part, card)
        played = kv_fleet.play(card, shape, "asleep", asked, kv_fleet.split(fixed.in_use, fixed.kept))
        print(f"  fleet, fixed part {part:g}: kept {100 * played.result.kept(SLO):.1f} %", file=sys.stderr)
        if played.result.kept(SLO) >= QUANTILE:
            break
    return fixed, reuse


def run(seed: int, fixed: Fixed, reuse: Reuse) -> dict[str, kv_fleet.Played]:
    """Every policy of the fleet on one seed."""
    card, shape = setting()
    asked = conversations(kv_fleet.rate, kv_fleet.CYCLE_S, seed, TALK)
    moving = Moving(card, step_of(card), reuse, slow=True)
    found = {
        "fixed": kv_fleet.play(card, shape, "asleep", asked, kv_fleet.split(fixed.in_use, fixed.kept)),
        "lru": kv_fleet.play(card, shape, "asleep", asked, kv_fleet.all_lru),
    }
    for way in kv_fleet.WAYS:
        held = kv_fleet.holding(card, step_of(card), SLO, kv_fleet.away(card, way).asleep_w)
        for name, clock in ((way, None), (f"{way}, clock", moving.clock)):
            pooled = kv_fleet.Pooled(step_of(card), reuse, held, TALK.longest_tokens, clock)
            found[name] = kv_fleet.play(card, shape, way, asked, pooled.act)
    return found


def bars(runs: Sequence[dict[str, kv_fleet.Played]]) -> list[Bar]:
    """Pools that come and go against four that stay."""
    found = []
    for way in kv_fleet.WAYS:
        kept = min(each[way].result.kept(SLO) for each in runs)
        share = fmean(
            100.0 * (1.0 - each[way].result.energy_j / each["fixed"].result.energy_j) for each in runs
        )
        found.append(Bar(f"fleet, pools {way}: energy saved against fixed pools, %",
                         share if kept >= QUANTILE else 0.0, KV_BAR, "higher"))  # fmt: skip
        found.append(Bar(f"fleet, pools {way}: promise kept least, share", kept, QUANTILE, "higher"))
    return found


def table(runs: Sequence[dict[str, kv_fleet.Played]], fixed: Fixed) -> dict[str, dict[str, float]]:
    """Printed; what was printed."""
    shown = Table(title=f"four L20, rate 1 : 6, fixed: {fixed.in_use} blocks each for requests in flight")
    names = ("kJ", "saved %", "found", "prompt tokens", "busy", "pools held", "wakes", "kept %")
    for column in ("policy", *names):
        shown.add_column(column, justify="left" if column == "policy" else "right")
    rows = {}
    for name in runs[0]:
        played = [each[name] for each in runs]
        results = [p.result for p in played]
        saved_by = [1.0 - each[name].result.energy_j / each["fixed"].result.energy_j for each in runs]
        rows[name] = {
            "energy_j": fmean(r.energy_j for r in results),
            "saved_percent": 100.0 * fmean(saved_by),
            "hit_ratio": fmean(r.hit_ratio for r in results),
            "prefill_tokens": fmean(r.prefill_tokens for r in results),
            "busy": fmean(r.busy_s / r.duration_s / kv_fleet.MEMBERS for r in results),
            "held": fmean(p.held for p in played),
            "wakes": fmean(p.wakes for p in played),
            "kept": min(r.kept(SLO) for r in results),
        }
        r = rows[name]
        shown.add_row(
            name, f"{r['energy_j'] / 1e3:.1f}", f"{r['saved_percent']:.1f}", f"{r['hit_ratio']:.3f}",
            f"{r['prefill_tokens']:.0f}", f"{r['busy']:.2f}", f"{r['held']:.2f}", f"{r['wakes']:.1f}",
            f"{100 * r['kept']:.1f}",
        )  # fmt: skip
    Console().print(shown)
    return rows
