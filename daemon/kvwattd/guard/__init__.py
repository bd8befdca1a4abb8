"""The privileged process that alone writes clocks, and the client the daemon talks to it with."""
