"""The live sidecar. Imports nothing here: the guard must stay tiny."""
