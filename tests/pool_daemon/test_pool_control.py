"""The pool as REST sees it, before and without anything that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pool_parts import NAMES, configuration

from kvwattd.api.ports import Rejected
from kvwattd.api.schemas import ManualScaleRequest, ModeView
from kvwattd.config import Mode, parse_config
from kvwattd.config_change import change_between
from kvwattd.control import Control
from kvwattd.loop import Daemon
from kvwattd.reload import apply
from kvwattd.telemetry.gpu import GpuInfo

INFO = GpuInfo("GPU-1", 0, "NVIDIA L20", (210, 2520), 2520, 275.0, False, True, "570.86")
TWO = ManualScaleRequest(instances=2, duration_s=60.0)


def control(folder: Path, mode: str = "shadow", **pool: Any) -> tuple[Daemon, Control]:
    data = configuration(**pool) | {"daemon": {"mode": mode, "state_dir": str(folder)}}
    daemon = Daemon(parse_config(data))
    return daemon, Control(daemon)


def test_nothing_is_invented_before_the_first_look(tmp_path: Path) -> None:
    """Members are unknown, nothing is desired, and no list is an empty list."""
    _, plane = control(tmp_path, router="http-sd")
    seen = plane.pool()
    assert seen.enabled and not seen.acting and seen.fault is not None
    assert [(m.name, str(m.status)) for m in seen.members] == [(name, "unknown") for name in NAMES]
    assert [(k.kind, k.desired, k.unknown, k.capacity_per_s) for k in seen.kinds] == [("tp1", None, 3, None)]
    assert plane.targets() is None
    assert plane.status().pool.enabled


def test_by_hand_only_where_it_is_carried_out(tmp_path: Path) -> None:
    """Shadow mode, no pool and numbers out of bounds are refused with what is accepted."""
    daemon, plane = control(tmp_path, maximum=2)
    with pytest.raises(Rejected, match="mode active"):
        plane.set_scale(TWO, "operator")
    daemon.set_mode(Mode.ACTIVE)
    assert daemon.pool is not None and daemon.pool.scaler.acting
    with pytest.raises(Rejected, match=r"pool\.maximum"):
        plane.set_scale(ManualScaleRequest(instances=3, duration_s=60.0), "operator")
    assert plane.set_scale(TWO, "operator").by == "operator"
    assert plane.pool().manual is not None
    plane.clear_scale()
    assert plane.pool().manual is None
    _, without = control(tmp_path, enabled=False)
    with pytest.raises(Rejected, match=r"pool\.enabled"):
        without.set_scale(TWO, "operator")
    with pytest.raises(Rejected, match=r"pool\.enabled"):
        without.targets()
    without.clear_scale()
    assert not without.pool().enabled


async def test_leaving_active_leaves_the_pool_looking(tmp_path: Path) -> None:
    """Mode off or shadow: it orders nothing from that moment on."""
    daemon, plane = control(tmp_path, mode="active")
    assert daemon.pool is not None and daemon.pool.scaler.acting
    for mode in (Mode.SHADOW, Mode.OFF):
        await plane.set_mode(ModeView(mode=Mode.ACTIVE), "operator")
        await plane.set_mode(ModeView(mode=mode), "operator")
        assert not daemon.pool.scaler.acting


async def test_limits_change_while_it_runs(tmp_path: Path) -> None:
    """Planner and scaler are told of a reloaded minimum; the backend waits for a restart."""
    daemon, plane = control(tmp_path, maximum=2)
    data = configuration(minimum=2, cooldown_s=5.0, backend="systemd")
    wanted = parse_config(data | {"daemon": {"mode": "shadow", "state_dir": str(tmp_path)}})
    change = change_between(daemon.config, wanted)
    assert change.restart == ("pool.backend",)
    await apply(daemon, change)
    assert daemon.pool is not None
    seen, scaled = plane.pool(), daemon.pool.scaler.params
    assert (seen.minimum, seen.maximum, seen.backend, scaled.minimum) == (2, 3, "process", 2)


@pytest.mark.parametrize(
    ("pool", "backend", "router"),
    [
        ({}, "process", "none"),
        ({"backend": "systemd", "router": "http-sd"}, "systemd", "http-sd"),
        (
            {"rest": "either", "router": "haproxy", "haproxy": {"sockets": ["/run/h.sock"]}},
            "vllm-sleep",
            "haproxy",
        ),
        (
            {"router": "hooks", "hooks": {"admit": ["a", "{member}"], "withdraw": ["w", "{member}"]}},
            "process",
            "hooks",
        ),
    ],
)
def test_every_part_is_built_from_its_keys(
    tmp_path: Path, pool: dict[str, Any], backend: str, router: str
) -> None:
    """Backend and router are those that the configuration names."""
    _, plane = control(tmp_path, **pool)
    assert (plane.pool().backend, plane.pool().router) == (backend, router)


def test_who_is_parked_on_anothers_gpus_counts_no_joule(tmp_path: Path) -> None:
    """Shapes that take turns: readings are of the one that serves, and no joule is counted twice."""
    data = configuration() | {"daemon": {"state_dir": str(tmp_path)}}
    data["instance"][1] |= {"gpus": ["0"], "kind": "another"}
    daemon = Daemon(parse_config(data))
    a, b, c = daemon.runs.values()
    a.gpus = b.gpus = (INFO,)
    users = daemon.gpus._users
    a.park("stopped")
    assert users() == [b, c]
    a.unpark()
    b.park("stopped")
    assert users() == [a, c]
    a.park("stopped")
    assert users() == [a, b, c]
