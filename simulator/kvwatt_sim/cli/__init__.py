"""Commands that need the simulator, found by the `kvwatt` command through entry points."""
