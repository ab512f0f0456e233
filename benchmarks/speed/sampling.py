# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What a frame costs, with random weights: the release's procedure (a), this pipeline (b, c), the floor under it (d).

    python -m benchmarks.speed.sampling --size half

(b) and (d) have (a)'s steps, scheduler and branches; (c) is the pipeline at its defaults against (a) at its own.
"""

import argparse
import json
import platform
from pathlib import Path

import diffusers
import torch

from benchmarks.speed.sampling_procedures import (
    SIZES,
    build_peer,
    build_pipeline,
    build_pndm,
    measure_in_turn,
    measure_lengths,
    run_floor,
    run_peer,
    run_pipeline,
    run_release,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="half")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--num_frames", type=int, default=4, help="frames of a video, all in one chunk")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--release_steps", type=int, default=100, help="what the release's README samples with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=[16, 64], help="for linearity and memory, on the CPU"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet")
    parser.add_argument("--output", type=Path, help="JSON, by default beside this script")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, which is returned."""
    size, device, frames, steps = options.size, options.device, options.num_frames, options.steps
    pipe = build_pipeline(size, device, getattr(torch, options.dtype))
    peer = build_peer(pipe, size)
    default_scheduler, default_steps = pipe.scheduler, pipe.config.default_num_inference_steps
    if options.compile:
        pipe.unet, peer.unet = torch.compile(pipe.unet), torch.compile(peer.unet)
    runs = {  # name: frames, steps, call
        "release": (1, steps, lambda n: run_release(pipe, 1, n)),
        "release_defaults": (1, options.release_steps, lambda n: run_release(pipe, 1, n)),
        "pipeline": (frames, steps, lambda n: run_pipeline(pipe, build_pndm(), frames, n, frames)),
        "pipeline_defaults": (
            frames,
            default_steps,
            lambda n: run_pipeline(pipe, default_scheduler, frames, n, frames),
        ),
        "floor": (frames, steps, lambda n: run_floor(pipe, frames, n)),
        "instruct_pix2pix": (frames, steps, lambda n: run_peer(peer, frames, n, SIZES[size][3:])),
    }
    on_cuda = device.startswith("cuda")
    if on_cuda:  # the weights were drawn in float32
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, median = measure_in_turn(runs, options.repeats, device)
    ratios = {
        "a/b": median["release"] / median["pipeline"],
        "a/c": median["release_defaults"] / median["pipeline_defaults"],
        "b/d": median["pipeline"] / median["floor"],
        "b/instruct_pix2pix": median["pipeline"] / median["instruct_pix2pix"],
    }
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_cuda else device,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    report = {
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "machine": machine,
        "ratios": ratios,
        "median_seconds_a_frame": median,
        "seconds_a_frame": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_cuda else None,
        "lengths": measure_lengths(size, options.lengths) if device == "cpu" else {},
    }
    output = options.output or Path(__file__).with_name(f"sampling_{size}_{device}.json")
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(*(f"{name:20} {value:.4f}" for name, value in {**median, **ratios}.items()), sep="\n")
    print(f"Wrote {output}.")
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"sampling.py: error: {error}") from None
