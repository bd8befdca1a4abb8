"""Shadow mode: what would have been set, what it would have saved, and what it would have cost."""
