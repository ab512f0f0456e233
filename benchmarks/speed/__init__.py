"""Benchmarks of the time and memory that sampling, training and data need."""
