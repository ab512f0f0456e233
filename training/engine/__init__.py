"""The training loop and what every trainer needs."""
