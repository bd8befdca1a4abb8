"""What is shipped for Prometheus and Grafana: accepted by promtool, true to the code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_process import program

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
FOLDER = DEPLOY / "prometheus"
RULES = ("kvwatt.rules.yml", "kvwatt.alerts.yml")
DASHBOARD = json.loads((DEPLOY / "grafana" / "kvwatt.json").read_text(encoding="utf-8"))
RECORDED = re.compile(r"^ *- record: (\S+)$", re.MULTILINE)
SERIES = re.compile(r"\b(?:host|instance|instance_metric):kvwatt_[a-z0-9_:]+|\bkvwatt_[a-z0-9_]+\b")


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [program("promtool"), *arguments],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.example.yml"),
        ("check", "rules", *RULES),
        ("test", "rules", "kvwatt.tests.yml"),
    ],
    ids=["configuration", "rules", "unit tests"],
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    """Configuration and rules are well-formed, and the rules' own unit tests pass."""
    assert "SUCCESS" in promtool(*arguments)


def expressions() -> Iterator[str]:
    """Everything that the dashboard asks for."""
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (item["expr"] for item in DASHBOARD["annotations"]["list"])
    yield from (item["definition"] for item in DASHBOARD["templating"]["list"] if "definition" in item)


def recorded() -> set[str]:
    return set(RECORDED.findall((FOLDER / RULES[0]).read_text(encoding="utf-8")))


def exported() -> set[str]:
    """The reference's names: a test of its own keeps it true to the code."""
    reference = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(kvwatt_\w+)` \| (\w+) \|", reference, re.MULTILINE)
    parts = {
        name + end for name, kind in rows if kind == "histogram" for end in ("_bucket", "_sum", "_count")
    }
    return {name for name, _ in rows} | parts


def test_every_series_that_is_asked_for_is_exported() -> None:
    """Rules, alerts and dashboard name only series that the daemon exports or a rule records."""
    known = exported() | recorded()
    rules = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in RULES)
    text = "\n".join(
        [re.sub(r"(?m)^ *(summary|description|- alert|- name|- record):.*$", "", rules), *expressions()]
    )
    asked = set(SERIES.findall(text))
    assert asked - known == set()
    assert len(asked) > 30


def test_every_panel_says_what_it_shows() -> None:
    """A title, a unit and at least one query in every panel; identifiers are unique."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert all(
        panel["title"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels
    )
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
