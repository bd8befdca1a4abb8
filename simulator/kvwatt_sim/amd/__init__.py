"""A simulated libamd_smi.so over the same simulated GPUs as the simulated NVML."""
