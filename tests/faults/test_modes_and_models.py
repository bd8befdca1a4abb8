"""Shadow mode writes nothing, no fitting model means no control; both change without a restart."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from daemon_process import eventually
from fault_stage import LEASE_BOUND_S, Staging


def test_shadow_mode_decides_and_writes_nothing_and_leaving_active_resets(staging: Staging) -> None:
    """In shadow mode no setter is called; active over REST lowers; shadow and off mean driver default."""
    with staging(mode="shadow") as stage:
        start_s = stage.gpus.now_s()
        stage.daemon.wait_for("shadow")
        eventually(
            lambda: any(d["clock_mhz"] is not None for d in stage.daemon.decisions()), stage.daemon.describe
        )
        decided = stage.daemon.decisions()[0]
        assert decided["regime"] == "shadow" and decided["applied"] is False
        assert not [call for call in stage.gpus.setter_log() if call.t_s >= start_s]
        assert stage.daemon.instance()["clock_target_mhz"] is None
        for mode in ("shadow", "off"):
            assert stage.daemon.put("/api/v1/mode", {"mode": "active"}).status_code == 200
            stage.control()
            assert stage.daemon.put("/api/v1/mode", {"mode": mode}).status_code == 200
            stage.default_within(LEASE_BOUND_S, time.monotonic())
            default_s = time.monotonic()
            stage.daemon.wait_for(mode)
            time.sleep(0.5)
            assert not stage.sets_since(default_s)
            eventually(
                lambda: stage.daemon.metric("kvwatt_guard_state", state="unused") == 1.0,
                stage.daemon.describe,
            )
        stage.only_permitted_clocks()


def test_without_a_model_it_learns_at_default_until_one_appears(
    staging: Staging, model: Path, tmp_path: Path
) -> None:
    """No model: LEARNING at driver default with what to do; a model copied in is taken up while running."""
    empty = tmp_path / "model"
    with staging(model=empty) as stage:
        start_s = stage.gpus.now_s()
        stage.daemon.wait_for("learning")  # at first because none is loaded yet
        eventually(lambda: str(empty) in stage.daemon.instance()["regime_reason"], stage.daemon.describe)
        learning = stage.daemon.instance()
        assert "kvwatt profile" in learning["regime_reason"]
        assert learning["model"]["state"] == "missing"
        assert not stage.sets_since(start_s)
        empty.mkdir()
        # As `cp` may do it: the manifest first, the rest of the artifact later.
        shutil.copy(model / "manifest.json", empty)
        eventually(lambda: stage.daemon.instance()["model"]["state"] == "refused", stage.daemon.describe)
        for trees in ("model.step.txt", "model.power.txt"):
            shutil.copy(model / trees, empty)
        stage.control()


def test_a_model_of_other_hardware_is_refused_with_both_names(
    staging: Staging, model: Path, foreign_model: Path, tmp_path: Path
) -> None:
    """A model of another GPU controls nothing; replaced by the right one it is taken up while running."""
    folder = tmp_path / "model"
    shutil.copytree(foreign_model, folder)
    with staging(model=folder) as stage:
        start_s = stage.gpus.now_s()
        eventually(lambda: stage.daemon.instance()["model"]["state"] == "refused", stage.daemon.describe)
        refused = stage.daemon.wait_for("learning")
        assert "'NVIDIA H200'" in refused["regime_reason"] and "'NVIDIA L20'" in refused["regime_reason"]
        assert stage.daemon.metric("kvwatt_model_state", state="refused") == 1.0
        assert "model refused: trained on 'NVIDIA H200'" in stage.daemon.log()
        assert not stage.sets_since(start_s)
        shutil.rmtree(folder)
        shutil.copytree(model, folder)
        stage.control()


def test_a_bound_between_two_supported_clocks_is_kept(staging: Staging) -> None:
    """An operator's floor need not be a clock that the GPU lists; the next one above it is the lowest."""
    with staging(floor_mhz=907) as stage:
        stage.control()
        assert stage.held_mhz is not None and stage.held_mhz >= 907
        stage.only_permitted_clocks()


def test_without_its_gpu_it_runs_and_says_so(staging: Staging) -> None:
    """No NVML on the host, or no such GPU: FAILSAFE that names it, no guard, the API answers."""
    with staging(driver=False) as stage:
        eventually(
            lambda: (
                f"GPU {stage.server.uuids[0]}: looking it up: " in stage.daemon.instance()["regime_reason"]
            ),
            stage.daemon.describe,
        )
        assert stage.daemon.instance()["regime"] == "failsafe"
        assert "guard: started" not in stage.daemon.log()
        assert stage.daemon.get("/readyz").status_code == 503
        assert stage.daemon.get("/healthz").status_code == 200
        assert stage.daemon.stop() == 0
