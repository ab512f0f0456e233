"""Metrics, held-out clips, baselines and the evaluation's page."""
