"""A shipped model of a made-up GPU, and operating points of a GPU that is not quite like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from refit_world import profile_rows

from kvwatt import artifact
from kvwatt.profiles import ProfileTable, table_of
from kvwatt.throughput import StepModel
from kvwatt.training import Origin, fit


@pytest.fixture(scope="session")
def profile() -> ProfileTable:
    return table_of(profile_rows())


@pytest.fixture(scope="session")
def shipped(profile: ProfileTable) -> StepModel:
    return fit(profile, Origin("Made-up GPU", model_name="made-up"))


@pytest.fixture
def ship(profile: ProfileTable, shipped: StepModel) -> Callable[[Path], Path]:
    """Writes the shipped artifact to a folder."""

    def write(folder: Path) -> Path:
        artifact.save(shipped, folder, profile)
        return folder

    return write
