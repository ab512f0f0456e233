# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Speed of training steps with random weights: the release (a), this project on pictures (b) and with the latent cache
(c), and a floor (d) of forward, backward and optimizer on ready tensors.

    python -m benchmarks.speed.training_step --size half

All train the same UNet and adapter with the same batch size and the optimizer of the training loop. A step lasts from
one batch to the next. It includes data, encoders, clipping and logging, but no checkpoints and no validation. The
frames have the size of the samples, and their files stay in the system's cache.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.scripts import count, machine_facts, package_versions, parse_benchmark, run_script
from benchmarks.speed.sampling_procedures import SIZES
from benchmarks.speed.training_procedures import (
    build_trained,
    count_flops,
    draw_samples,
    measure_matmul,
    measure_rates,
    run_floor,
    run_release,
    run_training,
)
from training.engine.devices import check_device
from training.engine.precision import held_in, weight_dtype
from training.media.settings_file import write_json
from training.options.command import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--size", choices=SIZES, default="half", help="size of the model and its frames; full is Stable Diffusion's")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda", "mps"), default=device, help="device that trains")
    add("--mixed_precision", choices=("no", "bf16"), default="no", help="number format of a step")
    add("--gradient_checkpointing", action="store_true", help="compute activations twice, to save memory")
    add("--use_8bit_adam", action="store_true", help="use the 8-bit Adam of bitsandbytes, on CUDA")
    add("--channels_last", action="store_true", help="use the channels-last memory layout in the UNet")
    add("--batch_size", type=count, default=4, help="samples per step")
    # 0 is the default of training/train.py; the release uses 1.
    add("--num_workers", type=int, default=0, help="data workers of (a), (b) and (c)")
    add("--num_frames", type=count, default=16, help="frames of the clip that is drawn as data")
    add("--steps", type=count, default=2, help="timed steps per round, after one warm-up step")
    add("--repeats", type=count, default=5, help="rounds; each runs (a) to (d) once")
    name = "training_step_{size}_{device}.json"
    return parse_benchmark(parser, argv, "benchmarks/speed/training_step_half_cpu.json", name=name)


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Measure all figures, with the files in `folder`."""
    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision=options.mixed_precision)
    device, dtype = accelerator.device, weight_dtype(accelerator)
    pipe = build_trained(options.size, options.device, options.gradient_checkpointing, options.channels_last)
    with held_in(dtype, [pipe.vae, pipe.image_encoder]):
        samples = draw_samples(pipe, folder, options.num_frames)
        loading, output_dir = (options.batch_size, options.num_workers), folder / "output"
        procedures = {
            "release": partial(run_release, accelerator, pipe, samples["release"], *loading),
            "pictures": partial(run_training, accelerator, pipe, samples["pictures"], *loading, output_dir),
            "latent_cache": partial(run_training, accelerator, pipe, samples["latent_cache"], *loading, output_dir),
            "floor": partial(run_floor, accelerator, pipe, options.batch_size),
        }
        procedures = {name: partial(run, use_8bit_adam=options.use_8bit_adam) for name, run in procedures.items()}
        rates, median, peaks = measure_rates(procedures, options.repeats, options.steps, options.batch_size, device)
    figures = {
        "ratios": {
            "c/d": median["latent_cache"] / median["floor"],
            "c/a": median["latent_cache"] / median["release"],
            "b/a": median["pictures"] / median["release"],
        },
        "median_samples_a_second": median,
        "samples_a_second": rates,
        "peak_bytes": peaks,
        "trained_parameters": sum(value.numel() for part in (pipe.unet, pipe.adapter) for value in part.parameters()),
        "matmul": None,
    }
    if device.type == "cuda":
        flops, ceiling = count_flops(accelerator, pipe), measure_matmul(device, dtype)
        share = {name: rate * flops / ceiling for name, rate in median.items()}
        figures["matmul"] = {"flops_a_sample": flops, "ceiling_flops_a_second": ceiling, "share_of_ceiling": share}
    return figures


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, and return it."""
    check_device(options.device)
    machine = machine_facts("processor", "cores", "load", "threads", "device", device=options.device)
    machine |= package_versions("torch", "diffusers")
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    with tempfile.TemporaryDirectory() as folder:
        report = {"settings": settings, "machine": machine, **measure(options, Path(folder))}
    write_json(options.output, report)
    figures = {**report["median_samples_a_second"], **report["ratios"]}
    print(*(f"{name:20} {value:.4f}" for name, value in figures.items()), sep="\n")
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
