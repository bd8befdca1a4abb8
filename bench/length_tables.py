"""Tables of how well lengths are foreseen. Part of bench/projection.py."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from length_scores import DECILES, Floats, LengthScore, Moved

LENGTHS_BAR = 0.05


def show_lengths(console: Console, scores: dict[str, LengthScore]) -> None:
    shown = Table(
        title="Expected remaining tokens: observed / expected by decile, second half from the first"
    )
    for column in ("", *(str(d + 1) for d in range(10)), "all"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, score in scores.items():
        shown.add_row(name, *(f"{ratio:.3f}" for ratio in score.ratios), f"{score.mean_ratio:.3f}")
        shown.add_row("  expected tokens", *(f"{tokens:.1f}" for tokens in score.expected_tokens))
    console.print(shown)


def show_intervals(console: Console, scores: dict[str, LengthScore], what_moved: dict[str, Moved]) -> None:
    """Each decile with its 95 % interval, and what the truth did between the halves."""
    shown = Table(
        title="The same with 95 % intervals (whole requests resampled), and what lengths themselves did"
    )
    for column in ("", *(str(d + 1) for d in range(DECILES)), f"surely beyond {LENGTHS_BAR:g}"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, score in scores.items():
        shown.add_row(name, *_pairs(score.interval), _verdict(score.refuted(LENGTHS_BAR)))
    for kind, each in what_moved.items():
        shown.add_row(f"{kind} moved", *(f"{ratio:.3f}" for ratio in each.ratios), "")
        shown.add_row("  95 %", *_pairs(each.interval), _verdict(each.beyond(LENGTHS_BAR), "none"))
    console.print(shown)


def _pairs(interval: Floats) -> list[str]:
    return [f"{low:.2f}-{high:.2f}" for low, high in interval.T]


def _verdict(deciles: list[int], none: str = "none: not refuted") -> str:
    return ", ".join(map(str, deciles)) or none


def show_chance(console: Console, scores: dict[str, LengthScore], drawn: dict[str, Floats]) -> None:
    """The worst decile beside what a right model, and this one on halves drawn at random, would show."""
    shown = Table(title="Worst decile's distance from 1, and what is chance")
    right_model = ("right model: median", "95 %", f"within {LENGTHS_BAR:g}")
    for column in ("", "found", *right_model, "drawn halves: median", "95 %"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, score in scores.items():
        right = (f"{score.chance:.3f}", f"{score.chance_95:.3f}", f"{score.within(LENGTHS_BAR):.0%}")
        worst = drawn[name.split()[0]]
        halves = (f"{np.median(worst):.3f}", f"{np.quantile(worst, 0.95):.3f}")
        shown.add_row(name, f"{score.worst:.3f}", *right, *halves)
    console.print(shown)


def chance_of(
    scores: dict[str, LengthScore], drawn: dict[str, Floats], what_moved: dict[str, Moved]
) -> dict[str, object]:
    """For the JSON: what stands in the table of chance."""
    found: dict[str, object] = {
        name: {
            "worst": score.worst,
            "right_model_median": score.chance,
            "right_model_95": score.chance_95,
            "right_model_within_bar": score.within(LENGTHS_BAR),
            "log_likelihood": score.log_likelihood,
            "interval_95": score.interval.T.tolist(),
            "deciles_surely_beyond": score.refuted(LENGTHS_BAR),
        }
        for name, score in scores.items()
    }
    for kind, each in what_moved.items():
        found[f"{kind} moved"] = {
            "ratios": each.ratios.tolist(),
            "interval_95": each.interval.T.tolist(),
            "deciles_surely_beyond": each.beyond(LENGTHS_BAR),
        }
    return found | {f"{kind} halves drawn": worst.tolist() for kind, worst in drawn.items()}
