"""The configuration edited while running: taken up whole or not at all; GPUs that are given up are reset."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from daemon_process import TOKEN, DaemonProcess, eventually
from fault_load import Load
from fault_stage import CEILING_MHZ, FLOOR_MHZ, Stage, daemon_for

from kvwatt_sim import cards
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import demo_uuid
from kvwatt_sim.server.launch import SimServer

SECOND = """
[[instance]]
name = "second"
url = "{url}"
gpus = ["{gpu}"]
poll_s = 0.25
scrape_deadline_s = 1.0
stale_after_s = 2.0
"""
HIGHER_FLOOR_MHZ = 1500


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[SimGpus, SimServer, SimServer]]:
    """Two GPUs of one machine, each with a busy server."""
    state = tmp_path_factory.mktemp("gpus") / "gpus"
    specs = [cards.load("l20").gpu_spec(demo_uuid(index)) for index in (0, 1)]
    with (
        SimGpus.create(state, specs) as gpus,
        SimServer("l20", state=state, gpus=(0,)) as first,
        SimServer("l20", state=state, gpus=(1,)) as second,
        Load(first.base_url),
        Load(second.base_url),
    ):
        yield gpus, first, second


@pytest.fixture(scope="module")
def running(
    pair: tuple[SimGpus, SimServer, SimServer], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    gpus, first, _ = pair
    daemon = daemon_for(first, tmp_path_factory.mktemp("daemon"), model)
    try:
        daemon.start()
        yield Stage(first, gpus, daemon)
    finally:
        daemon.close()


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    """In control, with the configuration as it was at the start; afterwards again."""
    original = running.daemon.config.read_text()
    running.control()
    yield running
    running.daemon.config.write_text(original)
    reload(running.daemon)
    assert running.daemon.alive
    running.only_permitted_clocks()


def edit(daemon: DaemonProcess, change: Callable[[str], str]) -> None:
    daemon.config.write_text(change(daemon.config.read_text()))


def reload(daemon: DaemonProcess) -> bool:
    """SIGHUP, and whether the file was taken up."""
    before = daemon.get("/api/v1/config").json()["reloads_total"]
    daemon.signal(signal.SIGHUP)

    def done() -> bool:
        state = daemon.get("/api/v1/config").json()
        return bool(state["reloads_total"] > before)

    eventually(done, daemon.describe)
    found = daemon.get("/api/v1/config").json()["last"]["ok"]
    assert isinstance(found, bool)
    return found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("lease_s = 2.0", "lease_s = -1"), "guard.lease_s"),
        (lambda text: text + "\n[nonsense", "valid TOML"),
        (lambda text: text.replace("[policy]", "[polcy]"), "did you mean 'policy'?"),
        (lambda text: text + SECOND.format(url="http://127.0.0.1:9", gpu="GPU-none"), "GPU-none"),
    ],
)
def test_a_file_that_is_refused_changes_nothing(
    stage: Stage, change: Callable[[str], str], told: str
) -> None:
    """The daemon stays in control with what it had; metric, log and REST name what is wrong."""
    moment = stage.moment()
    edit(stage.daemon, change)
    assert not reload(stage.daemon)
    assert stage.daemon.metric("kvwatt_config_reload_success") == 0.0
    assert told in stage.said_since(moment) and "the old one stays in force" in stage.said_since(moment)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    refused = httpx.post(f"{stage.daemon.url}/api/v1/config/reload", headers=bearer, timeout=10)
    assert refused.status_code == 409 and told in refused.text
    assert stage.daemon.instance()["regime"] == "active"
    assert len(stage.daemon.status()["instances"]) == 1
    assert not stage.resets_since(moment.t_s)


def test_new_bounds_hold_from_the_reload_on(stage: Stage) -> None:
    """A higher floor: no clock below it is set any more; what needs a restart is named."""
    old, new = f"floor_mhz = {FLOOR_MHZ}", f"floor_mhz = {HIGHER_FLOOR_MHZ}"
    edit(stage.daemon, lambda text: text.replace(old, new))
    edit(stage.daemon, lambda text: text.replace("reload_s = 0.5", "reload_s = 0.7"))
    assert reload(stage.daemon)
    done = stage.daemon.get("/api/v1/config").json()["last"]
    assert done["applied"] == ["policy.floor_mhz"] and done["restart"] == ["model.reload_s"]
    moment = stage.moment()
    eventually(
        lambda: stage.held_mhz is not None and HIGHER_FLOOR_MHZ <= stage.held_mhz < CEILING_MHZ,
        stage.daemon.describe,
    )
    sets = stage.sets_since(moment.t_s)
    assert not [call for call in sets if int(call.args.split(",")[1]) < HIGHER_FLOOR_MHZ]
    assert stage.daemon.metric("kvwatt_config_restart_pending") == 1.0


def test_an_instance_comes_and_goes_with_its_gpu_at_default(
    stage: Stage, pair: tuple[SimGpus, SimServer, SimServer]
) -> None:
    """An added instance is controlled; a removed one is reset first, and the other goes on unharmed."""
    gpus, _, second = pair
    original = stage.daemon.config.read_text()
    edit(stage.daemon, lambda text: text + SECOND.format(url=second.base_url, gpu=demo_uuid(1)))
    assert reload(stage.daemon)
    eventually(lambda: gpus.lock_mhz(1) is not None, stage.daemon.describe)
    stage.control()
    moment = stage.moment()
    edit(stage.daemon, lambda _: original)
    assert reload(stage.daemon)
    # The call comes before the reload is answered; the GPU takes its time to follow.
    assert [call.gpu for call in stage.resets_since(moment.t_s)] == [1]
    eventually(lambda: gpus.lock_mhz(1) is None, stage.daemon.describe)
    assert [view["name"] for view in stage.daemon.status()["instances"]] == ["sim"]
    assert [call.gpu for call in stage.resets_since(moment.t_s)] == [1]
    assert stage.daemon.instance()["regime"] == "active"


def test_what_was_set_over_rest_stands_over_the_file_until_it_is_deleted(stage: Stage) -> None:
    """A reload and a restart keep it, and say so; DELETE follows the file again."""
    daemon = stage.daemon
    assert daemon.put("/api/v1/mode", {"mode": "shadow"}).status_code == 200
    assert reload(daemon)
    assert daemon.get("/api/v1/config").json()["last"]["overridden"] == ["daemon.mode"]
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.status()["mode"] == "shadow"
    kept = daemon.status()["settings"]["mode"]
    assert (kept["mode"], kept["by"]) == ("shadow", "tests")
    assert daemon.metric("kvwatt_settings_over_rest") == 1.0
    assert daemon.delete("/api/v1/mode").json() == {"mode": "active"}
    stage.control()


def test_a_second_daemon_of_the_same_folder_refuses_to_start(stage: Stage) -> None:
    """Exit code 2, with the folder, the process that has it, and what to do; the first goes on."""
    command = [sys.executable, "-m", "kvwattd", "run", "--config", str(stage.daemon.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 2
    assert f"in use by another kvwatt daemon (process {stage.daemon.process.pid})" in done.stderr
    assert "stop that one" in done.stderr and "Traceback" not in done.stderr
    assert stage.daemon.instance()["regime"] == "active"
