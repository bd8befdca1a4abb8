"""Everything that the shipped dashboard and rules ask a Prometheus for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FOLDER = DEPLOY / "prometheus"
RULES = ("kvwatt.rules.yml", "kvwatt.alerts.yml")
DASHBOARD = json.loads((DEPLOY / "grafana" / "kvwatt.json").read_text(encoding="utf-8"))
SERIES = re.compile(r"\b(?:host|instance|instance_metric):kvwatt_[a-z0-9_:]+|\bkvwatt_[a-z0-9_]+\b")
# What Grafana puts in: everything, and an interval of four scrapes where each second has one.
_FILLED = {"$host": ".*", "$instance": ".*", "$__rate_interval": "4s"}
_RECORDED = re.compile(r"^ *- record: (\S+)$", re.MULTILINE)
_VALUES = re.compile(r"^label_values\((.+), (\w+)\)$")


def panels() -> Iterator[tuple[str, str]]:
    """Title and expression of every query of a panel."""
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", []))


def annotations() -> list[str]:
    return [item["expr"] for item in DASHBOARD["annotations"]["list"]]


def variables() -> Iterator[tuple[str, str]]:
    """Label and selector of every variable of the dashboard that is filled by a query."""
    for item in DASHBOARD["templating"]["list"]:
        if "definition" in item:
            found = _VALUES.match(item["definition"])
            assert found is not None, item["definition"]
            yield found[2], found[1]


def expressions() -> Iterator[str]:
    """Everything that the dashboard asks for."""
    yield from (expression for _, expression in panels())
    yield from annotations()
    yield from (selector for _, selector in variables())


def filled(expression: str) -> str:
    """As Grafana sends it."""
    for name, value in _FILLED.items():
        expression = expression.replace(name, value)
    return expression


def rule_texts() -> str:
    """The rules without what is written for people and without the names they give."""
    text = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in RULES)
    return re.sub(r"(?m)^ *(summary|description|- alert|- name|- record):.*$", "", text)


def series() -> set[str]:
    """Names of all series that the rules or the dashboard ask for."""
    return set(SERIES.findall("\n".join([rule_texts(), *expressions()])))


def recorded() -> set[str]:
    return set(_RECORDED.findall((FOLDER / RULES[0]).read_text(encoding="utf-8")))
