"""Prefix caching in the simulated engine, and traffic that shares prefixes."""
