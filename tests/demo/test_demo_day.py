"""The compressed day: its course, who a request goes to, what it is compared with, what it ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kvwatt.state import Metric
from kvwatt_sim.demo.balance import LeastBusy, ThroughRouter
from kvwatt_sim.demo.day_results import DayResult, print_day
from kvwatt_sim.demo.day_run import always_on
from kvwatt_sim.demo.day_settings import SLO, DayOptions, clock_of, draw, share_at, steady
from kvwatt_sim.demo.settings import DemoError
from kvwatt_sim.latency import Attainment, LatencyReport

DAY_S = 60.0


@pytest.mark.parametrize(
    ("change", "told"),
    [({"instances": 1}, "--instances 1"), ({"seconds": 30.0}, "--seconds 30"), ({"seed": -1}, "--seed -1")],
)
def test_options_out_of_range_are_told(change: dict[str, float], told: str) -> None:
    """Each with its name, its value and what is accepted."""
    with pytest.raises(DemoError, match=told):
        DayOptions(**change)  # type: ignore[arg-type]


def test_the_command_refuses_a_trace_beside_instances() -> None:
    """A day has requests of its own; the answer comes at once and without a traceback."""
    command = [sys.executable, "-m", "kvwattd", "demo", "--instances", "4", "--trace", "x.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1 and "--trace" in done.stderr and "Traceback" not in done.stderr


def test_a_day_rises_once_and_falls_once() -> None:
    """Quietest at night, busiest in the afternoon, between 0 and 1 at every hour."""
    hours = [share_at(h / 10) for h in range(240)]
    assert 0.0 < min(hours) < 0.2 and max(hours) == pytest.approx(1.0, abs=1e-3)
    assert 3 <= hours.index(min(hours)) / 10 <= 4 and 15 <= hours.index(max(hours)) / 10 <= 16
    assert (clock_of(240.0, 120.0), clock_of(240.0, -5.0), clock_of(240.0, 999.0)) == (
        "12:00",
        "00:00",
        "00:00",
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 50), st.integers(2, 8))
def test_requests_follow_the_day(seed: int, instances: int) -> None:
    """In order, within the day, as many as the course asks for, and the same for the same seed."""
    options = DayOptions(instances=instances, seed=seed)
    requests = draw(options, DAY_S)
    times = [request.arrival_s for request in requests]
    assert times == sorted(times) and times[0] >= 0.0 and times[-1] <= DAY_S
    expected = options.peak_per_s * DAY_S * sum(share_at(h / 10) for h in range(240)) / 240
    assert len(requests) == pytest.approx(expected, rel=0.05)
    busy = sum(DAY_S * 13 / 24 <= t < DAY_S * 18 / 24 for t in times)
    quiet = sum(t < DAY_S * 5 / 24 for t in times)
    assert busy > 3 * quiet
    assert draw(options, DAY_S) == requests


def test_the_warm_up_is_steady() -> None:
    """As many as the rate says, evenly."""
    times = [request.arrival_s for request in steady(2.0, 5.0, seed=1)]
    assert times == [n / 2.0 for n in range(10)]


async def test_requests_go_to_the_least_busy_that_is_listed() -> None:
    """Of two, alternately; of one that is busy, the other; a list that fails leaves the one before."""
    lists = [
        [{"targets": ["a:1"], "labels": {}}, {"targets": ["b:1"], "labels": {"__scheme__": "http"}}],
        None,
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        listed = lists.pop(0)
        return httpx.Response(503) if listed is None else httpx.Response(200, text=json.dumps(listed))

    route = LeastBusy("http://daemon")
    with pytest.raises(DemoError):
        route.begin()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await route.fetch(client)
        await route.fetch(client)
    assert route.listed == ("http://a:1", "http://b:1")
    first = [route.begin() for _ in range(4)]
    assert Counter(first) == {"http://a:1": 2, "http://b:1": 2}
    route.end("http://b:1")
    assert route.begin() == "http://b:1"
    assert ThroughRouter("http://router:9", "http://daemon").begin() == "http://router:9"


def test_the_baseline_serves_the_same_requests_for_as_long() -> None:
    """Every request, over all instances, idle time included."""
    requests = draw(DayOptions(instances=2), 20.0)
    outcome = always_on(2, requests, 30.0)
    assert len(outcome.served) == len(requests)
    assert outcome.duration_s >= 30.0
    assert outcome.energy_j > 2 * 60.0 * 30.0  # more than two idle GPUs draw
    assert min(outcome.attainment(SLO).values()) > 0.9


def test_the_table_and_the_file_tell_the_same() -> None:
    """The saving beside what it is measured against, and what became of every request."""
    outcome = always_on(2, draw(DayOptions(instances=2), 20.0), 20.0)
    latency = LatencyReport(
        50, 49, 0, 1, 900, {m: {} for m in Metric}, None, {Metric.TTFT: Attainment(49, 50)}
    )
    result = DayResult(
        instances=2,
        day_s=20.0,
        duration_s=outcome.duration_s,
        energy_j=0.6 * outcome.energy_j,
        latency=latency,
        baseline=outcome,
        baseline_kept=outcome.attainment(SLO),
        ready_mean=1.4,
        ready_most=2,
        ready_least=1,
        events=[{"action": "start", "outcome": "done", "count": 3}],
        start_s=2.5,
        router="HAProxy",
        seed=0,
        warnings=("1 requests failed",),
    )
    console = Console(width=120, record=True)
    print_day(console, result)
    text = console.export_text()
    for part in (
        "40.0 %",
        "49 / 0 / 1",
        "3 start done",
        "2.5 s",
        "HAProxy",
        "1 requests failed",
        "virtual time",
    ):
        assert part in text
    document = json.loads(json.dumps(result.document()))
    assert document["energy_saved_ratio"] == pytest.approx(0.4)
    assert document["failed"] == 1 and document["baseline"] and document["slo_attainment"]["ttft"] == 0.98
