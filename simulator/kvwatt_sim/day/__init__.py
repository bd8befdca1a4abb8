"""A day on several instances in virtual time: pool, router, members that start, drain and stop."""
