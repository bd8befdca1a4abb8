"""What is shipped for Prometheus and Grafana: accepted by promtool, true to the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from asked import DASHBOARD, FOLDER, RULES, recorded, series
from prometheus_process import program

REPOSITORY = Path(__file__).resolve().parents[2]


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
    known, asked = exported() | recorded(), series()
    assert asked - known == set()
    assert len(asked) > 30


def test_every_panel_says_what_it_shows() -> None:
    """A title, a unit and at least one query in every panel; identifiers are unique."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert all(
        panel["title"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels
    )
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_is_in_the_text() -> None:
    """docs/prometheus.md names each of them and no other."""
    alerts = set(re.findall(r"- alert: (\w+)", (FOLDER / RULES[1]).read_text(encoding="utf-8")))
    text = (REPOSITORY / "docs" / "prometheus.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bKvwatt\w+", text)) == alerts
