"""A model for the whole session; a stage per module, in control at the start of every test that takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_load import Load
from fault_server import CARD, server_on, well_behaved
from fault_stage import Stage, Staging, daemon_for, damageable

from kvwatt import artifact
from kvwatt.profiles import table_of
from kvwatt.training import Origin, train
from kvwatt_sim import cards
from kvwatt_sim.nvml.build import CompilerMissing, build
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.server.launch import SimServer
from kvwatt_sim.virtual_profile import virtual_profile


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """The simulated GPUs need a C compiler once."""
    try:
        build()
    except CompilerMissing as error:
        pytest.skip(str(error))


def _trained(folder: Path, hardware: str) -> Path:
    card = cards.load(CARD, 1)
    origin = Origin(
        hardware=hardware, vllm_version="0.32.0", model_name="sim", created="2026-01-01T00:00:00+00:00"
    )
    artifact.save(train(table_of(virtual_profile(card, seed=0)), origin, folds=3, by_clock=False), folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the simulated GPU."""
    return _trained(tmp_path_factory.mktemp("model"), cards.load(CARD, 1).gpu_name)


@pytest.fixture(scope="session")
def foreign_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on other hardware."""
    return _trained(tmp_path_factory.mktemp("foreign"), "NVIDIA H200")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimServer]:
    """A server with a GPU of its own, always busy."""
    with server_on(tmp_path_factory.mktemp("server") / "gpus") as server, Load(server.base_url):
        yield server


@pytest.fixture(scope="module")
def gpus(server: SimServer) -> Iterator[SimGpus]:
    with SimGpus.open(server.state) as gpus:
        yield gpus


@pytest.fixture(scope="module")
def staging(
    server: SimServer, gpus: SimGpus, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Staging:
    """Starts a daemon beside the module's server, and ends it with the block: one at a time."""

    @contextmanager
    def staged(model: Path = model, **settings: object) -> Iterator[Stage]:
        daemon = daemon_for(server, tmp_path_factory.mktemp("daemon"), model, **settings)  # type: ignore[arg-type]
        try:
            daemon.start()
            yield Stage(server, gpus, daemon)
        finally:
            daemon.close()

    return staged


@pytest.fixture(scope="module")
def damaged_stage(
    server: SimServer, gpus: SimGpus, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """One daemon for all scenarios, on a machine that they may damage."""
    with damageable(server, gpus, model, tmp_path_factory.mktemp("damaged")) as stage:
        yield stage


@pytest.fixture(scope="module")
def shared_stage(staging: Staging) -> Iterator[Stage]:
    with staging() as stage:
        yield stage
        stage.only_permitted_clocks()


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    """The module's daemon in control; afterwards well-behaved surroundings again."""
    shared_stage.control()
    yield shared_stage
    well_behaved(shared_stage.server, shared_stage.gpus)
    assert shared_stage.daemon.alive, shared_stage.daemon.log()
