# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Smallest GPU memory in which stage 1 trains at full size, 512x640, with bf16, checkpointing and small batches.

    python -m benchmarks.speed.training_memory

The script measures the floor of `benchmarks.speed.training_step`: forward, backward and optimizer of UNet and adapter
on ready tensors. VAE and image encoder stay on the GPU in half precision. At a batch of 8, the peak of the training
loop is within 0.1 % of this floor.
"""

import argparse
import gc
from functools import partial

import torch
from accelerate import Accelerator

from benchmarks.scripts import machine_facts, package_versions, parse_benchmark, run_script
from benchmarks.speed.training_procedures import build_trained, measure_steps, run_floor
from training.engine.devices import check_bitsandbytes
from training.engine.precision import held_in
from training.media.settings_file import write_json
from training.options.command import CommandParser


SETTINGS = ((1, True), (1, False), (4, True))  # batch size, 8-bit Adam
NUM_STEPS = 4


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    return parse_benchmark(parser, argv, "benchmarks/speed/training_memory_full_cuda.json")


def measure() -> list[dict]:
    """Measure the peak of allocated and reserved bytes with each of `SETTINGS`."""
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
    """Measure, print and write the report, and return it."""
    check_bitsandbytes("benchmarks.speed.training_memory", "cuda" if torch.cuda.is_available() else "cpu")
    machine = machine_facts("device", device="cuda") | package_versions("torch", "diffusers", "bitsandbytes")
    report = {"machine": machine, "settings": measure()}
    write_json(options.output, report)
    for row in report["settings"]:
        print(*(f"{name} {value:g}" for name, value in row.items()), sep=", ")
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
