"""Random sequences of faults against guard, daemon's link and simulated GPUs together."""

from __future__ import annotations

from kvwatt_sim.sequences.play import STEPS
from kvwatt_sim.sequences.run import run

SEQUENCES = 24  # `bench/faults.py` plays a thousand and more


def test_no_sequence_of_faults_breaks_an_invariant() -> None:
    """No wrong clock, no clock off the record, none left behind, and control returns: whatever happened."""
    summary = run(SEQUENCES, first_seed=5_000, processes=2, timeout_s=600.0)
    assert summary.violations == []
    assert summary.sequences == SEQUENCES
    assert summary.setter_calls > SEQUENCES
    assert len(summary.steps) > len(set(STEPS)) // 2
