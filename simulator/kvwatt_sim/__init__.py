"""The simulated plant: GPU, engine, vLLM-compatible server, workloads and the demo."""
