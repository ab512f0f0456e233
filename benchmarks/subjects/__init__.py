"""Benchmarks of stage 2: its gains, its costs, and its settings."""
