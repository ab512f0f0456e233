# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What a training step costs, with random weights: the release's (a), this project's loop on pictures (b) and with
the latent cache (c), and the floor under it (d): forward, backward and optimizer on ready tensors.

    python -m benchmarks.speed.training_step --size half

All train the same UNet and adapter, in batches of one size, by the loop's optimizer. A step is all that happens from
one batch to the next: data, encoders, clipping and logging included, checkpoints and validation left out. Frames are
of the samples' size, and their files stay in the system's cache.
"""

import argparse
import json
import os
import platform
import tempfile
from functools import partial
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator

from benchmarks.speed.sampling_procedures import SIZES
from benchmarks.speed.training_procedures import (
    build_trained,
    count_flops,
    draw_samples,
    measure_in_turn,
    measure_matmul,
    run_floor,
    run_release,
    run_training,
)
from training.engine.precision import held_in, weight_dtype


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="half")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default=device)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--use_8bit_adam", action="store_true", help="by bitsandbytes, on CUDA")
    parser.add_argument("--channels_last", action="store_true", help="memory layout of the UNet")
    parser.add_argument("--batch_size", type=int, default=4)
    # 0 is the trainer's own default; the release has 1.
    parser.add_argument("--num_workers", type=int, default=0, help="data workers of (a), (b) and (c)")
    parser.add_argument("--num_frames", type=int, default=16, help="of the clip that is drawn as data")
    parser.add_argument("--steps", type=int, default=2, help="timed in each round, after one that warms up")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, in which all take their turn")
    parser.add_argument("--output", type=Path, help="JSON, by default beside this script")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """The figures, measured in `folder`."""
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
        rates, median, peaks = measure_in_turn(procedures, options.repeats, options.steps, options.batch_size, device)
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
    """Measure, print and write the report, which is returned."""
    on_cuda = options.device == "cuda"
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_cuda else options.device,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    with tempfile.TemporaryDirectory() as folder:
        report = {"settings": settings, "machine": machine, **measure(options, Path(folder))}
    output = options.output or Path(__file__).with_name(f"training_step_{options.size}_{options.device}.json")
    output.write_text(json.dumps(report, indent=2) + "\n")
    figures = {**report["median_samples_a_second"], **report["ratios"]}
    print(*(f"{name:20} {value:.4f}" for name, value in figures.items()), sep="\n")
    print(f"Wrote {output}.")
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"training_step.py: error: {error}") from None
