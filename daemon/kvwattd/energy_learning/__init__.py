"""Learning what the energy of serving depends on, while serving: windows in the loop, models in a worker."""
