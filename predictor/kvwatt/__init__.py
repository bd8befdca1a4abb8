"""The library: projection, prediction, energy and decision. Pure: no I/O, no clock reads, no globals."""
