"""The demo as it is looked at: its page in a browser, its metrics in a real Prometheus with our rules."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import psutil
import pytest
from asked import annotations, filled, panels, series, variables
from playwright.sync_api import Error, Page, sync_playwright
from prometheus_process import Prometheus

PATIENCE_S = 90.0
DEMO = [sys.executable, "-m", "kvwattd", "demo", "--instances", "2", "--seconds", "90", "--keep"]
# What a healthy demo rightly has no data for.
EMPTY = {
    "kvwatt_savings_disagreement_alarm": "alarms over holdout windows take days of them to judge",
    "kvwatt_shadow_": "it is in control",
}
FAILURES = "kvwatt_telemetry_errors_total"  # a cause has no count before the first poll that failed of it


@dataclass
class Demo:
    """A demo that runs."""

    url: str
    process: subprocess.Popen[str]

    def servers(self) -> list[psutil.Process]:
        """The simulated vLLM servers that run now."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in found if "kvwatt_sim.server" in _command(one)]


def _command(process: psutil.Process) -> str:
    """Empty where it has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Two instances under a pool, looked at while it runs; Ctrl-C at the end leaves nothing behind."""
    folder = tmp_path_factory.mktemp("observed")
    with subprocess.Popen(
        DEMO,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            told = (re.search(r"live page: (http://\S+)/$", line) for line in process.stdout)
            page = next((found[1] for found in told if found), None)
            assert page is not None, "the demo ended without telling its page"
            yield Demo(page, process)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=180)
        assert process.returncode == 130
        assert not list(folder.glob("kvwatt-demo-*"))


@pytest.fixture(scope="module")
def prometheus(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the demo every second."""
    target = demo.url.removeprefix("http://")
    with Prometheus(tmp_path_factory.mktemp("prometheus"), target) as running:
        yield running


@pytest.fixture(scope="module")
def page(demo: Demo) -> Iterator[Page]:
    """Chromium on the demo's page, which complains of nothing. Skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    complaints: list[str] = []
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"Chromium does not start: {error}")
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(demo.url)
        yield page
        browser.close()
    assert complaints == []


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes true within the time that a slow machine needs."""
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.5)
    return True


def test_the_page_answers_while_the_demo_runs(demo: Demo) -> None:
    """At the address that was told, with what the daemon decides."""
    assert "<title>kvwatt</title>" in httpx.get(demo.url, trust_env=False, timeout=PATIENCE_S).text
    status = httpx.get(f"{demo.url}/api/v1/status", trust_env=False, timeout=PATIENCE_S).json()
    assert [one["name"] for one in status["instances"]] == ["chat1", "chat2"]
    assert status["pool"]["enabled"]


def test_the_page_shows_the_demo(prometheus: Prometheus, page: Page) -> None:
    """In a browser: who is in control, plots, the pool. Prometheus looks at the same time."""
    page.locator("#regime").get_by_text("active", exact=True).wait_for()
    page.locator("#plot-clock svg.main-svg").first.wait_for()
    page.locator("#pool-view").get_by_text("chat2").first.wait_for()


def test_prometheus_has_all_that_dashboard_and_rules_ask_for(demo: Demo, prometheus: Prometheus) -> None:
    """Every query gives data, or is named as rightly empty; every rule evaluates."""
    asked = {filled(expression) for _, expression in panels()} | series()
    empty = {one for one in asked if any(name in one for name in EMPTY)}
    missing = {one for one in asked - empty if FAILURES not in one}

    def all_there() -> bool:
        missing.difference_update([one for one in sorted(missing) if prometheus.query(one)])
        return not missing

    assert eventually(all_there), f"no data after {PATIENCE_S:g} s: {sorted(missing)}"
    assert len(empty) >= len(EMPTY)
    assert [one for one in empty if prometheus.query(one)] == [], "has data: not rightly empty"
    for label, selector in variables():
        assert prometheus.label_values(label, filled(selector)), label
    assert {
        rule["name"]: rule.get("lastError") for rule in prometheus.rules() if rule["health"] == "err"
    } == {}
    assert len(prometheus.rules()) > 20


def test_a_dead_server_shows_as_failsafe(demo: Demo, page: Page, prometheus: Prometheus) -> None:
    """On the page of the real daemon; in what the dashboard marks; and as a failure with its cause."""

    def shown() -> bool:
        for server in demo.servers():  # the pool starts them again
            with contextlib.suppress(psutil.NoSuchProcess):
                server.kill()
        alarm = page.locator("#alarms").get_by_text("FAILSAFE")
        return bool(alarm.count() and page.locator("#regime").get_by_text("failsafe", exact=True).count())

    assert eventually(shown), page.locator("#regime").text_content()
    wanted = [*annotations(), *(expression for _, expression in panels() if FAILURES in expression)]
    assert len(wanted) == 2
    assert eventually(lambda: all(prometheus.query(filled(one)) for one in wanted))
