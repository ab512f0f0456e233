# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Floating-point operations of a sampled frame at full size: the release, this pipeline, and few steps.

    python -m benchmarks.speed.sampling_cost

The operations of each model are counted on the meta device, where a tensor has a size but no values. How often each
model runs is counted in a run of the smallest size.
"""

import argparse

from benchmarks.scripts import count, package_versions, parse_benchmark, run_script
from benchmarks.speed.sampling_counts import build_rows, count_models, count_procedures
from benchmarks.speed.sampling_procedures import SIZES
from training.media.settings_file import write_json
from training.options.command import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("count").add_argument
    add("--size", choices=SIZES, default="full", help="size of the model and its frames; full is Stable Diffusion's")
    add("--release_steps", type=count, default=100, help="steps that the release's README uses")
    return parse_benchmark(parser, argv, "benchmarks/speed/sampling_cost.json")


def main(options: argparse.Namespace) -> dict:
    """Count, print and write the report, and return it."""
    flops = count_models(options.size)
    rows = build_rows(flops, count_procedures(options.release_steps))
    *_, height, width = SIZES[options.size]
    settings = {"size": options.size, "height": height, "width": width, "release_steps": options.release_steps}
    versions = package_versions("torch", "diffusers")
    report = {"settings": settings, "versions": versions, "flops_a_sample": flops, "rows": rows}
    write_json(options.output, report)
    print(f"{'TFLOP':29} {'a frame':>9} {'a video':>9} {'release / this':>15}")
    for name, row in rows.items():
        frame, video = row["flops_a_frame"] / 1e12, row["flops_a_video"] / 1e12
        print(f"{name:29} {frame:9.2f} {video:9.2f} {row['release_over_this']:15.1f}")
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
