"""KV-cache scheduling with unknown output lengths: GSA and GBA with their guarantees, and references."""
