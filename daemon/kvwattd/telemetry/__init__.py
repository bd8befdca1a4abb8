"""What the daemon observes: engines over HTTP, GPUs over NVML."""
