# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Time to sample a frame with random weights: the release's procedure (a), this pipeline (b, c), a floor (d), and the
pipeline as a distilled model uses it, in few steps of one branch.

    python -m benchmarks.speed.sampling --size half
    python -m benchmarks.speed.sampling --size full --device cuda --dtype bfloat16 --num_frames 8 --batch_sizes 1 8 32

(b) and (d) have the steps, scheduler and branches of (a). (c) is the pipeline at its defaults, and few steps are its
rivals. Both are compared with the release at its own defaults.
"""

import argparse
import itertools

import torch

from benchmarks.scripts import count, machine_facts, package_versions, parse_benchmark, run_script
from benchmarks.speed.sampling_batches import measure_batches
from benchmarks.speed.sampling_procedures import (
    SIZES,
    build_pipeline,
    build_runs,
    measure_lengths,
    measure_runs,
)
from training.engine.devices import check_device
from training.media.settings_file import write_json
from training.options.command import CommandParser


RATIOS = {  # name -> the procedure whose time is divided by the other's
    "a/b": ("release", "pipeline"),
    "a/c": ("release_defaults", "pipeline_defaults"),
    "a/distilled_4": ("release_defaults", "distilled_4"),
    "a/distilled_1": ("release_defaults", "distilled_1"),
    "b/d": ("pipeline", "floor"),
    "b/instruct_pix2pix": ("pipeline", "instruct_pix2pix"),
}
PROCEDURES = list(dict.fromkeys(itertools.chain(*RATIOS.values())))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--size", choices=SIZES, default="half", help="size of the model and its frames; full is Stable Diffusion's")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, mps, ...")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="number format of the weights")
    add("--num_frames", type=count, default=4, help="frames of a video, all in one chunk")
    add("--steps", type=count, default=25, help="denoising steps of (a), (b) and (d)")
    add("--release_steps", type=count, default=100, help="steps that the release's README uses")
    add("--repeats", type=count, default=5, help="rounds; each measures all once, and the median counts")
    add("--lengths", type=count, nargs="*", default=[16, 64], help="video lengths to measure as well, on a CPU only")
    add("--procedures", nargs="+", choices=PROCEDURES, default=PROCEDURES, help="procedures to measure")
    add("--batch_sizes", type=count, nargs="*", default=[], help="frames at once of few steps, measured as well")
    add("--compile", action="store_true", help="compile the UNet with torch.compile")
    name = "sampling_{size}_{device}.json"
    options = parse_benchmark(parser, argv, "benchmarks/speed/sampling_half_cpu.json", name=name)
    if options.device != "cpu":
        parser.refuse(argv, ["lengths"], "only with `--device cpu`")
    return options


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, and return it."""
    check_device(options.device)
    size, device = options.size, options.device
    pipe = build_pipeline(size, device, getattr(torch, options.dtype))
    runs = build_runs(pipe, size, options.num_frames, options.steps, options.release_steps, options.compile)
    runs = {name: run for name, run in runs.items() if name in options.procedures}
    on_cuda = device.startswith("cuda")
    if on_cuda:  # the weights were drawn in float32
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, median = measure_runs(runs, options.repeats, device)
    ratios = {
        name: median[slow] / median[fast] for name, (slow, fast) in RATIOS.items() if slow in median and fast in median
    }
    report = {
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "machine": machine_facts("processor", "threads", "device", device=device)
        | package_versions("torch", "diffusers"),
        "ratios": ratios,
        "median_seconds_a_frame": median,
        "seconds_a_frame": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_cuda else None,
        "lengths": measure_lengths(size, options.lengths) if device == "cpu" else {},
        "batches": measure_batches(pipe, size, options.batch_sizes, options.repeats),
    }
    write_json(options.output, report)
    print(*(f"{name:20} {value:.4f}" for name, value in {**median, **ratios}.items()), sep="\n")
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
