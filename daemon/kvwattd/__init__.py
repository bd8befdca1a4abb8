"""The live sidecar: telemetry, guard, loop, REST and metrics. Imports nothing here: the guard must stay tiny."""
