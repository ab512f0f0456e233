# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The least memory that stage 1 trains in on a GPU at full size, 512x640: bf16, checkpointing, small batches.

    python -m benchmarks.speed.training_memory

Measured is the floor of `benchmarks.speed.training_step`, UNet and adapter forward, backward and optimizer on ready
tensors, with VAE and image encoder beside them in half precision; at a batch of 8 the loop peaks within 0.1 % of it.
"""

import argparse
import gc
import importlib.metadata
import json
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.speed.training_procedures import build_trained, measure_steps, run_floor
from training.engine.devices import check_bitsandbytes
from training.engine.precision import held_in


SETTINGS = ((1, True), (1, False), (4, True))  # batch size, 8-bit Adam
NUM_STEPS = 4


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    output = Path(__file__).with_name("training_memory_full_cuda.json")
    parser.add_argument("--output", type=Path, default=output, help="JSON, by default beside this script")
    return parser.parse_args(argv)


def measure() -> list[dict]:
    """Peak bytes, allocated and reserved, with each of `SETTINGS`."""
    accelerator = Accelerator(mixed_precision="bf16")
    pipe = build_trained("full", "cuda", gradient_checkpointing=True, channels_last=False)
    rows = []
    with held_in(torch.bfloat16, [pipe.vae, pipe.image_encoder]):
        for batch_size, use_8bit_adam in SETTINGS:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            floor = partial(run_floor, accelerator, pipe, batch_size, use_8bit_adam=use_8bit_adam)
            measure_steps(floor, NUM_STEPS, accelerator.device)
            rows.append(
                {
                    "batch_size": batch_size,
                    "use_8bit_adam": use_8bit_adam,
                    "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
                    "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
                }
            )
    return rows


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, which is returned."""
    check_bitsandbytes("SETTINGS", "cuda" if torch.cuda.is_available() else "cpu")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "bitsandbytes")}
    report = {"machine": {"device": torch.cuda.get_device_name(), **versions}, "settings": measure()}
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    for row in report["settings"]:
        print(*(f"{name} {value:g}" for name, value in row.items()), sep=", ")
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"training_memory.py: error: {error}") from None
