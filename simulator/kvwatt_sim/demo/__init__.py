"""The demonstration: two simulated plants, the same requests, one of them under kvwatt."""
