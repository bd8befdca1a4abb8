"""The pool on the status screen and in the doctor's findings."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from doctor_facts import HEALTHY
from fake_status import one_instance
from rich.console import Console

from kvwatt.pool import ActionKind, MemberStatus
from kvwattd.api.schemas import (
    KindView,
    ManualScaleView,
    MemberView,
    PoolActionView,
    PoolPlanView,
    PoolView,
    RateForecastView,
)
from kvwattd.commands.status_screen import screen
from kvwattd.config import parse_config
from kvwattd.doctor.facts import Facts, InstanceFact, Level, PoolFact
from kvwattd.doctor.report import examine

POOL = PoolView(
    enabled=True,
    backend="systemd",
    router="haproxy",
    fault="chat2: its state cannot be told",
    kinds=[KindView(kind="tp1", desired=2, ready=1, starting=1, capacity_per_s=2.5)],
    members=[
        MemberView(name="chat", kind="tp1", status=MemberStatus.READY, status_s=7.0, running=8),
        MemberView(name="chat2", kind="tp1", status=MemberStatus.STARTING, status_s=3.0, reason="asked"),
    ],
    forecast=RateForecastView(
        now_per_s=2.0, horizon_s=65.0, mean_per_s=3.0, quantile=0.95, quantile_per_s=4.0
    ),
    manual=ManualScaleView(instances=3, left_s=60.0, by="operator"),
    plan=PoolPlanView(
        decided_unix_s=1.0,
        state="up",
        desired={"tp1": 2},
        actions=[PoolActionView(member="chat2", action=ActionKind.START, reason="more")],
        reason="up to 4/s are coming",
        applied=False,
    ),
)


def shown(pool: PoolView) -> str:
    console = Console(width=160, file=StringIO(), force_terminal=False)
    console.print(screen(one_instance().model_copy(update={"pool": pool})))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_screen_tells_the_pool() -> None:
    """Wanted and there, the forecast, why, each member, what is by hand and what is only told."""
    text = shown(POOL)
    for part in (
        "2 wanted: 1 ready, 1 starting; each carries 2.50/s",
        "95% below 4.00/s",
        "up to 4/s are coming",
        "ready for 7 s  8 running",
        "starting for 3 s  asked",
        "3 instances for 60 s more (operator)",
        "only told",
        "nothing is taken away: chat2",
    ):
        assert part in text
    assert "pool" not in shown(PoolView())


def pooled(fact: PoolFact = PoolFact(), **keys: Any) -> Facts:  # noqa: B008
    config = parse_config(
        {
            "slo": {"tbt": {"limit_s": 0.1}},
            "pool": {"enabled": True, "backend": "systemd", **keys},
            "instance": [
                {"name": n, "url": f"http://127.0.0.1:{8000 + i}", "gpus": [str(i)]}
                for i, n in enumerate("ab")
            ],
        }
    )
    there, away = (InstanceFact(item, error="connection refused") for item in config.instances)
    there = replace(there, layout=HEALTHY.instances[0].layout, error="")
    return replace(HEALTHY, config=config, instances=(there, away), pool=fact)


@pytest.mark.parametrize(
    ("facts", "level", "told"),
    [
        (pooled(router="none"), Level.WARNING, "none is ever taken away"),
        (pooled(router="http-sd", minimum=2), Level.NOTE, "pool.minimum is all"),
        (pooled(PoolFact(router_error="unreachable: no"), router="http-sd"), Level.PROBLEM, "unreachable"),
        (
            pooled(PoolFact({"a": ("failed", "exit 1")}), router="http-sd"),
            Level.WARNING,
            "a is failed: exit 1",
        ),
        (pooled(PoolFact(error="no answer"), router="http-sd"), Level.PROBLEM, "no answer"),
        (pooled(router="http-sd", rest="sleep"), Level.NOTE, "VLLM_SERVER_DEV_MODE"),
    ],
)
def test_doctor_tells_what_keeps_a_pool_from_working(facts: Facts, level: Level, told: str) -> None:
    """Each with what to do about it."""
    found = [f for f in examine(facts) if f.check == "pool" and told in f.found]
    assert found and found[0].level is level and found[0].advice


def test_a_stopped_member_is_no_problem_to_the_doctor() -> None:
    """The pool starts it if it is needed; without a pool a silent server is one."""
    facts = pooled(router="http-sd")
    assert [f.level for f in examine(facts) if f.check == "vLLM b"] == [Level.NOTE]
    assert facts.config is not None
    alone = facts.config.model_copy(update={"pool": facts.config.pool.model_copy(update={"enabled": False})})
    assert [f.level for f in examine(replace(facts, config=alone)) if f.check == "vLLM b"] == [Level.PROBLEM]
