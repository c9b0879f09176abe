"""Backtests: what the watcher would have done with a stretch of the past, and what its limits should be."""
