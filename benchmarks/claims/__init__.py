"""Benchmarks of the paper's claims, and of the choice of guidance scales and scheduler."""
