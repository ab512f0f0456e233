# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The log of a training run: means over a window of steps, and the records in `log.jsonl`."""

import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from training.engine.messages import shorten


try:
    import resource
except ImportError:  # on Windows
    resource = None

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"


@dataclass
class LogWindow:
    """Measurements since the last record: values by name, samples of all processes, and the seconds they took."""

    values: dict[str, list[float | torch.Tensor]] = field(default_factory=dict)
    num_samples: int = 0
    seconds: float = 0.0

    def add(self, logs: Mapping[str, Any]) -> None:
        """Add floats or scalar tensors. Tensors stay on their device until [`reduce`], so that nothing waits."""
        for name, value in logs.items():
            value = value.detach() if isinstance(value, torch.Tensor) else float(value)
            self.values.setdefault(name, []).append(value)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain numbers."""
        values = {name: [float(value) for value in values] for name, values in self.values.items()}
        return {"values": values, "num_samples": self.num_samples, "seconds": self.seconds}

    def reduce(self) -> dict[str, float]:
        """Return `samples_per_second` and the mean of each name's finite values, over the window and all processes."""
        merged: dict[str, list[float]] = {}
        for values in gather_object([self.as_json()["values"]]):
            for name, numbers in values.items():
                merged.setdefault(name, []).extend(number for number in numbers if math.isfinite(number))
        means = {name: sum(numbers) / len(numbers) for name, numbers in merged.items() if numbers}
        return means | {"samples_per_second": self.num_samples / max(self.seconds, 1e-9)}


def measure_memory(device: torch.device) -> dict[str, float]:
    """Return `peak_memory_gib`: this process's peak on the CUDA device, else in main memory; empty if unknown."""
    if device.type == "cuda":
        return {"peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    if resource is None:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def start_log(output_dir: str | os.PathLike, global_step: int) -> None:
    """Remove the records after the step at which a run starts, so that the log stays one curve. Step 0 empties it."""
    path = Path(output_dir) / LOG_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for number, line in enumerate(_read_lines(path), start=1):
        fault = _find_line_fault(line)
        if fault is not None:
            logger.warning(f"Dropping line {number} of {path}, {fault}.")
        elif json.loads(line)["step"] <= global_step:
            kept.append(line + "\n")
    # Replace the log as a whole: a run that is killed here leaves no half-written one.
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def append_log(output_dir: str | os.PathLike, global_step: int, record: Mapping[str, float]) -> None:
    """Append one line `{"step": ..., name: value, ...}` to the log."""
    line = json.dumps({"step": global_step, **{name: float(value) for name, value in record.items()}})
    with open(Path(output_dir) / LOG_NAME, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_log(output_dir: str | os.PathLike) -> list[dict[str, float]]:
    """Return the records of the log in the order of their steps, an empty list without a log.

    Raises:
        ValueError: If the log cannot be read, or a line is no record.
    """
    path = Path(output_dir) / LOG_NAME
    lines = _read_lines(path)
    for number, line in enumerate(lines, start=1):
        fault = _find_line_fault(line)
        if fault is not None:
            raise ValueError(f"`output_dir` must hold a log of records, got line {number} of {path}, {fault}.")
    return [json.loads(line) for line in lines]


def _read_lines(path: Path) -> list[str]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        rule = "`output_dir` must hold a log that can be read"
        raise ValueError(f"{rule}, got {shorten(str(path))}: {error}.") from error


def _find_line_fault(line: str) -> str | None:
    """Return why a line is no record of the log, or `None` if it is one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "which was cut short or is no JSON"
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return "which is no object with a whole number as `step`"
    return next((f"whose `{name}` is no number" for name, v in record.items() if type(v) not in (int, float)), None)


def read_figures(output_dir: str | os.PathLike, global_step: int, prefix: str) -> dict[str, float]:
    """Return the values that a step logged under names with this prefix, keyed by the rest of the name."""
    figures = {}
    for record in read_log(output_dir):
        if record["step"] == global_step:
            figures |= {name.removeprefix(prefix): v for name, v in record.items() if name.startswith(prefix)}
    return figures
