"""For all tests: numerical libraries on one thread, for the tests themselves run on every core; no luck.

Hypothesis draws the same examples in every run, as it does by itself on the build servers it knows, and has
no limits on time: `--hypothesis-profile search` draws new ones (with `--hypothesis-seed N` the same again).
A test that fails while the machine stands still is run once more (support/stall_repeats.py).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

SAME = "kvwatt"
settings.register_profile(
    SAME, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile(SAME), derandomize=False)
settings.load_profile(SAME)

sys.path.append(str(Path(__file__).parent / "support"))
pytest_plugins = ["stall_repeats"]


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws numbers from the source of all modules loaded so far: that depends on the order."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a run in a shell's background: its children too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--hypothesis-profile", None) in (None, SAME):
        providers.is_local_module_file = lambda path: False
