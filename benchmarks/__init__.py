"""Benchmarks: speed, stage 2, and the paper's claims. They need the `training` extra."""

import importlib.util

from training.options.command import hide_broken_torchvision, how_to_install


for package in ("datasets", "torchmetrics"):
    if importlib.util.find_spec(package) is None:
        raise SystemExit("error: " + how_to_install(package, "training"))
hide_broken_torchvision()  # before a benchmark imports other libraries
