"""What a changed configuration amounts to: live, after a restart, or another instance."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwattd.config import Config, ConfigError, parse_config
from kvwattd.config_change import change_between

CHAT = {"name": "chat", "url": "http://127.0.0.1:8000", "gpus": ["0"]}
CODE = {"name": "code", "url": "http://127.0.0.1:8001", "gpus": ["1"]}
BASE: dict[str, Any] = {"slo": {"tbt": {"limit_s": 0.1}}, "instance": [CHAT, CODE]}


def changed(**keys: object) -> Config:
    """BASE with section__key = value; instance keys as chat__key."""
    data = copy.deepcopy(BASE)
    for name, value in keys.items():
        section, key = name.split("__")
        mine = next((i for i in data["instance"] if i["name"] == section), None)
        (data.setdefault(section, {}) if mine is None else mine)[key] = value
    return parse_config(data)


@pytest.mark.parametrize(
    ("keys", "applied", "restart"),
    [
        ({"daemon__mode": "active"}, ("daemon.mode",), ()),
        ({"daemon__tick_s": 0.2}, ("daemon.tick_s",), ()),
        ({"policy__margin": 0.1}, ("policy.margin",), ()),
        ({"slo__tbt": {"limit_s": 0.2}}, ("slo.tbt.limit_s",), ()),
        ({"chat__poll_s": 0.25}, ("instance[chat].poll_s",), ()),
        ({"chat__url": "http://127.0.0.1:9000"}, ("instance[chat].url",), ()),
        ({"api__port": 9000}, (), ("api.port",)),
        ({"guard__lease_s": 3.0}, (), ("guard.lease_s",)),
        ({"daemon__state_dir": "/tmp/other"}, (), ("daemon.state_dir",)),
        ({"model__reload_s": 1.0}, (), ("model.reload_s",)),
        ({"tap__socket": "/run/tap.sock"}, (), ("tap.socket",)),
        ({"record__max_mb": 7}, (), ("record.max_mb",)),
        ({}, (), ()),
    ],
)
def test_each_change_is_named_and_what_needs_a_restart_stays(
    keys: dict[str, object], applied: tuple[str, ...], restart: tuple[str, ...]
) -> None:
    """The configuration in force afterwards has the live changes and nothing of the others."""
    before, wanted = parse_config(BASE), changed(**keys)
    change = change_between(before, wanted)
    assert (change.applied, change.restart) == (applied, restart)
    assert change.config == (wanted if applied else before)


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({"chat__poll_s": 0.25, "chat__scrape_deadline_s": 0.2}, ["chat", "code"]),
        ({"chat__slo": {"ttft": {"limit_s": 1.0}}}, ["chat", "code"]),
        ({"chat__url": "http://127.0.0.1:9000"}, ["code"]),
        ({"chat__gpus": ["2"]}, ["code"]),
        ({"chat__max_num_seqs": 8}, ["code"]),
        ({"chat__stale_after_s": 3.0}, ["code"]),
    ],
)
def test_another_server_or_gpu_is_another_instance(keys: dict[str, object], kept: list[str]) -> None:
    """What was learned is kept only where server, GPUs and shape are the same."""
    change = change_between(parse_config(BASE), changed(**keys))
    assert [item.name for item in change.kept] == kept
    anew = [name for name in ("chat", "code") if name not in kept]
    assert list(change.dismissed) == [item.name for item in change.admitted] == anew


@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True),
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True),
)
def test_instances_come_and_go_by_name(before: list[str], after: list[str]) -> None:
    """Whatever the lists: after dismissing and admitting exactly the wanted instances are there."""

    def config(names: list[str]) -> Config:
        items = [{"name": n, "url": "http://h:1", "gpus": [str(ord(n))]} for n in names]
        return parse_config({"slo": BASE["slo"], "instance": items})

    change = change_between(config(before), config(after))
    there = (set(before) - set(change.dismissed)) | {item.name for item in change.admitted}
    assert there == set(after)
    assert {item.name for item in change.kept} == set(before) & set(after)
    assert not set(change.dismissed) & {item.name for item in change.kept}


def test_what_contradicts_the_running_rest_is_refused() -> None:
    """A tick longer than the lease in force waits for the restart, although the file is sound in itself."""
    running = parse_config(BASE)
    wanted = changed(daemon__tick_s=5.0, guard__lease_s=10.0)
    with pytest.raises(ConfigError, match=r"guard\.lease_s.*restart kvwatt"):
        change_between(running, wanted)


@given(st.permutations([CHAT, CODE]))
def test_the_order_of_instances_means_nothing(items: list[dict[str, Any]]) -> None:
    """Moving an entry within the file changes nothing."""
    change = change_between(parse_config(BASE), parse_config({**BASE, "instance": items}))
    assert (change.applied, change.restart, change.dismissed, change.admitted) == ((), (), (), ())
