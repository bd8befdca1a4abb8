"""What was used, done and promised, interval by interval, kept so that savings can be proven from it."""
