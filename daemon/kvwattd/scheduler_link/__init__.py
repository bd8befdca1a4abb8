"""The link to the scheduler inside vLLM: what it is told, in a file, and what it tells, over the tap."""
