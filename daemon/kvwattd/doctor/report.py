"""Runs the checks and shows what they found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

from rich.console import Group
from rich.text import Text

from kvwattd.doctor import host_checks, pool_checks, serving_checks
from kvwattd.doctor.facts import Facts, Finding, Level

CHECKS: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    host_checks.check_config,
    host_checks.check_driver,
    host_checks.check_gpus,
    host_checks.check_privilege,
    host_checks.check_guard,
    host_checks.check_writers,
    serving_checks.check_instances,
    serving_checks.check_model,
    pool_checks.check_pool,
    host_checks.check_api,
    host_checks.check_time,
)
_MARKS = {Level.OK: "✓", Level.NOTE: "·", Level.WARNING: "!", Level.PROBLEM: "✗"}
_STYLES = {Level.OK: "green", Level.NOTE: "dim", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def examine(facts: Facts) -> list[Finding]:
    """All findings, in the order in which they are best put right."""
    return [finding for check in CHECKS for finding in check(facts)]


def has_problem(findings: Sequence[Finding]) -> bool:
    return any(finding.level is Level.PROBLEM for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"ok": not has_problem(findings), "findings": [asdict(f) for f in findings]}, indent=2)


def as_text(findings: Sequence[Finding]) -> Group:
    return Group(*_lines(findings))


def _lines(findings: Sequence[Finding]) -> Iterator[Text]:
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        line = Text(f"{_MARKS[finding.level]} {finding.check:<{width}}  ", style=_STYLES[finding.level])
        line.append(finding.found, style="default")
        yield line
        if finding.advice:
            yield Text(f"  {'':<{width}}  → {finding.advice}", style="italic")
    counts = {level: sum(f.level is level for f in findings) for level in (Level.PROBLEM, Level.WARNING)}
    yield Text(f"\n{counts[Level.PROBLEM]} problem(s), {counts[Level.WARNING]} warning(s)")
