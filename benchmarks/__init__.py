"""Benchmarks against peers and physical limits: ``python -m benchmarks`` writes `RESULTS.md`."""
