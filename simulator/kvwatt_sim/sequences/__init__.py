"""Random sequences of faults against a real guard, the daemon's link to it and simulated GPUs."""
