"""A virtual plant behind the energy counter of a real GPU: coarse in time, sampled in part, noisy."""
