# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What a training run reports: means over a window of steps, and one curve in `log.jsonl`."""

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


try:
    import resource
except ImportError:  # on Windows
    resource = None

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"


@dataclass
class LogWindow:
    """What happened since the last record: values by name, samples of all processes, and seconds spent on them."""

    values: dict[str, list[float | torch.Tensor]] = field(default_factory=dict)
    num_samples: int = 0
    seconds: float = 0.0

    def add(self, logs: Mapping[str, Any]) -> None:
        """Note floats or scalar tensors; tensors stay where they are until [`reduce`], so no device is waited for."""
        for name, value in logs.items():
            value = value.detach() if isinstance(value, torch.Tensor) else float(value)
            self.values.setdefault(name, []).append(value)

    def as_json(self) -> dict[str, Any]:
        """Its fields, as plain numbers."""
        values = {name: [float(value) for value in values] for name, values in self.values.items()}
        return {"values": values, "num_samples": self.num_samples, "seconds": self.seconds}

    def reduce(self) -> dict[str, float]:
        """Means over the window and all processes of the finite values of each name, and `samples_per_second`."""
        merged: dict[str, list[float]] = {}
        for values in gather_object([self.as_json()["values"]]):
            for name, numbers in values.items():
                merged.setdefault(name, []).extend(number for number in numbers if math.isfinite(number))
        means = {name: sum(numbers) / len(numbers) for name, numbers in merged.items() if numbers}
        return means | {"samples_per_second": self.num_samples / max(self.seconds, 1e-9)}


def measure_memory(device: torch.device) -> dict[str, float]:
    """`peak_memory_gib`: the most that this process has had until now of the CUDA device, or else of the machine, in
    GiB; nothing where the system does not tell."""
    if device.type == "cuda":
        return {"peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    if resource is None:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def start_log(output_dir: str | os.PathLike, global_step: int) -> None:
    """Cut the log back to the step that a run starts from, so that it stays one curve; step 0 empties it."""
    path = Path(output_dir) / LOG_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= global_step:
                kept.append(line + "\n")
        except ValueError:
            logger.warning(f"Dropping a line of {path} that was cut short.")
    # Never half a log, even if the run dies right here.
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)


def append_log(output_dir: str | os.PathLike, global_step: int, record: Mapping[str, float]) -> None:
    """Append one line `{"step": ..., name: value, ...}` to the log."""
    line = json.dumps({"step": global_step, **{name: float(value) for name, value in record.items()}})
    with open(Path(output_dir) / LOG_NAME, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_log(output_dir: str | os.PathLike) -> list[dict[str, float]]:
    """The log's records, in the order of their steps; none if there is no log."""
    path = Path(output_dir) / LOG_NAME
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def read_figures(output_dir: str | os.PathLike, global_step: int, prefix: str) -> dict[str, float]:
    """The values that a step logged under names with this prefix, by what follows it; empty if it logged none."""
    figures = {}
    for record in read_log(output_dir):
        if record["step"] == global_step:
            figures |= {name.removeprefix(prefix): v for name, v in record.items() if name.startswith(prefix)}
    return figures
