"""[pool]: off by default, and every contradiction is named with what is accepted."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kvwattd.config import ConfigError, parse_config
from kvwattd.config_change import change_between

OBJECT = "StatefulSet/vllm"
INSTANCES = [
    {"name": name, "url": f"http://127.0.0.1:{8000 + n}", "gpus": [str(n)], "command": ["vllm", "serve"]}
    for n, name in enumerate("ab")
]
BASE: dict[str, Any] = {"slo": {"tbt": {"limit_s": 0.1}}, "pool": {"enabled": True}, "instance": INSTANCES}


def with_pool(**keys: object) -> dict[str, Any]:
    return {**copy.deepcopy(BASE), "pool": {"enabled": True, **keys}}


def with_instance(number: int, **keys: object) -> dict[str, Any]:
    data = copy.deepcopy(BASE)
    data["instance"][number] |= keys
    return data


def in_one_object() -> dict[str, Any]:
    """Both instances replicas of one object."""
    data = with_pool(backend="kubernetes")
    for item in data["instance"]:
        item["workload"] = OBJECT
    return data


def test_without_a_word_there_is_no_pool() -> None:
    """Nothing is started or stopped unless the operator says so."""
    config = parse_config({**BASE, "pool": {}})
    assert not config.pool.enabled
    assert parse_config(BASE).pool.enabled


@pytest.mark.parametrize(
    ("data", "key", "accepted"),
    [
        (with_pool(maximum=3), "pool.maximum", "at most the number"),
        (with_pool(minimum=3), "pool.minimum", "at most"),
        (with_pool(minimum=2, maximum=1), "pool.minimum", "at most pool.maximum (1)"),
        (with_pool(minimum=0), "pool.minimum", "greater than or equal to 1"),
        (with_pool(backend="docker"), "pool.backend", "'process', 'systemd' or 'kubernetes'"),
        (with_pool(router="nginx"), "pool.router", "'none', 'haproxy', 'http-sd' or 'hooks'"),
        (with_pool(router="haproxy"), "pool.haproxy.sockets", "runtime sockets"),
        (with_pool(router="hooks", hooks={"admit": ["x"]}), "pool.hooks.withdraw", "a command"),
        (with_pool(router="hooks", hooks={"admit": ["x"]}), "pool.hooks.admit", "{member}"),
        (with_instance(0, server="two words"), "instance[0].server", "pattern"),
        (with_pool(backend="kubernetes"), "instance[0].workload", "StatefulSet/vllm"),
        (in_one_object(), "instance[1].workload", "an object of its own (this one belongs to instance 'a'"),
        (with_pool(backend="kubernetes", rest="sleep"), "pool.rest", '"stop"'),
        (with_pool(drain_then="kill"), "pool.drain_then", "'keep-waiting', 'undrain' or 'stop-anyway'"),
        (with_pool(survivors_load_max=1.5), "pool.survivors_load_max", "less than or equal to 1"),
        (with_pool(survivors_load_max=0.95), "pool.survivors_load_max", "at most pool.load_max (0.9)"),
        (with_pool(forecast_quantile=0.2), "pool.forecast_quantile", "greater than or equal to 0.5"),
        (with_pool(day_s=100.0), "pool.day_s", "at least 864 times pool.period_s"),
        (with_pool(colour="red"), "pool.colour", "a known key"),
        (with_instance(1, command=None), "instance[1].command", "program and arguments"),
        (with_instance(1, url="http://127.0.0.1:8000"), "instance[1].url", "a server of its own"),
        (with_instance(1, gpus=["1", "2"], kind="tp1"), "instance[1].kind", "a kind of its own"),
    ],
)
def test_what_does_not_fit_is_named(data: dict[str, Any], key: str, accepted: str) -> None:
    """Key, value and what is accepted; nothing is repaired in silence."""
    with pytest.raises(ConfigError) as refused:
        parse_config(data)
    found = {problem.key: problem.accepted for problem in refused.value.problems}
    assert key in found and accepted in found[key], found


def test_members_come_and_go_only_with_a_restart() -> None:
    """Their starts and drains are under way; without a pool instances are live as ever."""
    running, other = parse_config(BASE), with_instance(1, url="http://127.0.0.1:9000")
    with pytest.raises(ConfigError, match="restart of kvwatt"):
        change_between(running, parse_config(other))
    with pytest.raises(ConfigError, match="restart of kvwatt"):
        change_between(running, parse_config({**BASE, "instance": INSTANCES[:1]}))
    promises = parse_config({**BASE, "slo": {"tbt": {"limit_s": 0.2}}})
    assert change_between(running, promises).applied == ("slo.tbt.limit_s",)
    change = change_between(running, parse_config(with_pool(cooldown_s=5.0, router="http-sd")))
    assert (change.applied, change.restart) == (("pool.cooldown_s",), ("pool.router",))
    assert (change.config.pool.cooldown_s, change.config.pool.router) == (5.0, "none")


def test_shapes_may_take_turns_on_the_same_gpus() -> None:
    """Only in a pool that stops what it does not need: what sleeps keeps its GPU."""
    turns = with_instance(1, gpus=["0"], kind="tp1b")
    assert len(parse_config(turns).instances) == 2
    for pool in ({"enabled": True, "rest": "sleep"}, {}):
        with pytest.raises(ConfigError, match="owned by instance"):
            parse_config({**turns, "pool": pool})
