"""What runs inside vLLM: the tap. Needs vLLM and msgspec (which vLLM brings along), nothing else."""
