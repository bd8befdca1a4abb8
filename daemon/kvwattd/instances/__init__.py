"""vLLM instances: starting, stopping, sleeping and waking them, and which GPUs they may be placed on."""
