"""A test that fails while the machine stands still is run once more, on fixtures of its own, and told of.

Without a measured stall a failure is final, and so is the second one. What is run again is listed at the end
of the run with the stall and with what failed first, so that nothing is repeated in silence.
"""

from __future__ import annotations

import time

import pytest
from _pytest.runner import runtestprotocol
from host_stalls import host_stalls

# A stall just before a test may still be felt by what its module's fixtures started.
BEFORE_S = 5.0
PROPERTY = "run again"


def pytest_sessionstart() -> None:
    host_stalls()


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """The standard protocol, and once more where the machine stood still."""
    began_s = time.monotonic()
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    lost_s = host_stalls().lost_s(began_s - BEFORE_S)
    if lost_s > 0.0 and any(report.failed for report in reports):
        told = f"{item.nodeid}: the machine stood still for {lost_s:.1f} s; first: {_first(reports)}"
        _forget_fixtures(item)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        reports[-1].user_properties.append((PROPERTY, told))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _forget_fixtures(item: pytest.Item) -> None:
    """Whatever the first run left half done is taken down, fixtures of module and session too."""
    try:
        item.session._setupstate.teardown_exact(None)
    except Exception as error:  # the second run checks the same again
        print(f"fixtures of {item.nodeid} after a stall: {error}")


def _first(reports: list[pytest.TestReport]) -> str:
    """The line that says what failed."""
    crash = getattr(next(r for r in reports if r.failed).longrepr, "reprcrash", None)
    return str(getattr(crash, "message", "no message")).split("\n")[0][:200]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was run again, of all processes of the run."""
    reports = [r for found in terminalreporter.stats.values() for r in found if hasattr(r, "user_properties")]
    told = [str(text) for report in reports for name, text in report.user_properties if name == PROPERTY]
    if told:
        terminalreporter.section("run again after a stall of the machine")
        for line in told:
            terminalreporter.write_line(line)
