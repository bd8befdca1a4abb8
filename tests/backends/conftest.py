"""A folder whose processes do not outlive their test."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvwattd.instances.process_record import Records


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Nothing of it is left running, whatever a test did."""
    yield tmp_path / "instances"
    for member in ("a", "b"):
        for pid in Records((tmp_path / "instances").resolve(), member).processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
