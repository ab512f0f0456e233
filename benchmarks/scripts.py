# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Parts that the benchmark scripts share: error line, machine facts, measurements in turn, formatted means."""

import os
import platform
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from tqdm.auto import tqdm

from training.options.command import ending_in_one_line


def run_script(
    main: Callable[[Namespace], Any],
    parse_args: Callable[[], Namespace],
    errors: tuple[type[Exception], ...] = (ValueError,),
) -> None:
    """Run a script from the command line. One of `errors`, or Ctrl-C, ends it with a single line."""
    kept = (
        "Parts that the script had finished and stored are kept: run the same command, with `--resume` if it has it."
    )
    with ending_in_one_line(kept, errors=errors):
        main(parse_args())


def package_versions(*names: str) -> dict[str, str]:
    return {name: version(name) for name in names}


def machine_facts(*names: str, device: str = "cpu") -> dict[str, Any]:
    """Return the named facts: `processor`, `cores`, `load`, `threads` of torch, or the name of the `device`."""
    facts = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device,
    }
    return {name: facts[name] for name in names}


def measure_in_turn(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call each function once per round, so that a busy machine slows all of them alike. Return all values by name."""
    values = {name: [] for name in measures}
    for name in tqdm([name for _ in range(repeats) for name in measures], desc="runs", unit="run"):
        values[name].append(measures[name]())
    return values


def format_mean(value: Mapping[str, float | int | None], digits: int = 3) -> str:
    """Format a signed mean with its standard error, if there is one; `-` if there is no mean."""
    error = "" if value["standard_error"] is None else f" ± {value['standard_error']:.{digits}f}"
    return "-" if value["mean"] is None else f"{value['mean']:+.{digits}f}{error}"
