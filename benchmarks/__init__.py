"""Benchmarks: each prints a table; `RESULTS.md` holds the last."""
