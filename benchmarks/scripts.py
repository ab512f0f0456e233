# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Parts that the benchmark scripts share: options, error line, machine facts, measurements, formatted means."""

import argparse
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from training.options.command import CommandParser, ending_in_one_line


OUTPUT_DIR = Path("runs/benchmarks")  # git ignores it


def count(text: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    if not text.isdecimal() or not 0 < len(text) < 10 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 999999999, got {text[:50]!r}")
    return int(text)


def parse_benchmark(
    parser: CommandParser, argv: Sequence[str] | None, committed: str, beside: str = "", name: str | None = None
) -> argparse.Namespace:
    """Add `--output` to the parser of a benchmark, and return the options.

    By default the output is in `runs/benchmarks`, so that only a named output replaces the `committed` figures of the
    project. Its `name` is that of `committed` by default; names of options in braces stand for their values. The help
    says what is written `beside` it.
    """
    default = OUTPUT_DIR / (name or Path(committed).name)
    shown = re.sub(r"{(\w+)}", lambda match: match[1].upper(), str(default))
    output = f"JSON file{beside} (default: {shown}); name {committed} to replace the figures of the project"
    parser.usage = parser.usage or "%(prog)s [--OPTION VALUE ...]"
    parser.add_argument_group("output").add_argument("--output", type=Path, help=output)
    options = parser.parse_args(argv)
    options.output = options.output or Path(str(default).format(**vars(options)))
    return options


def run_script(
    main: Callable[[argparse.Namespace], Any],
    parse_args: Callable[[], argparse.Namespace],
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
