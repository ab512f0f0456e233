# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Measure guidance that acts in a part of the denoising steps only (arXiv:2404.07724), on validation clips.

The script writes the figures as JSON. Differences to guidance in all steps are taken clip by clip.

    python -m benchmarks.claims.guidance_interval --model model_card/tiny
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.claims.clip_sampling import (
    METRICS,
    add_consecutive_option,
    load_model_and_clips,
    measure_missing,
    measure_sampled,
    remove_measurements,
    sample_clips,
    summarize,
)
from benchmarks.scripts import format_mean, package_versions, parse_benchmark, run_script
from pipeline_dreampose import DreamPosePipeline
from training.media.animation import model_digest
from training.media.settings_file import write_json
from training.metrics.clips import Clip
from training.options.clips import RUN_OPTIONS, add_clip_options, add_resume_options
from training.options.command import CommandParser


ALL_STEPS = (0.0, 1.0)
DEFAULT = [(0.0, 0.5), (0.0, 0.75), (0.25, 0.75), (0.25, 1.0), (0.5, 1.0), (0.0, 0.0)]


def interval(text: str) -> tuple[float, float]:
    """Read two shares of the steps, such as `0.25,0.75`: where guidance starts and where it stops."""
    try:
        start, stop = map(float, text.split(","))
    except ValueError:
        start, stop = -1, -1
    if not 0 <= start <= stop <= 1:
        raise argparse.ArgumentTypeError(f"must be START,STOP with 0 <= START <= STOP <= 1, got {text[:50]!r}")
    return start, stop


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add_clip_options(parser, split="validation", num_clips=16, frames_per_clip=4)
    add_consecutive_option(add, default=6)
    add("--intervals", nargs="+", type=interval, default=DEFAULT, help="start and stop of guidance, such as 0.25,0.75")
    add("--num_inference_steps", type=int, help="denoising steps per frame (default: the model's own)")
    add("--device", default="cpu", help="cpu, cuda, mps, ...")
    add_resume_options(parser.add_argument_group("after a stop"), "intervals")
    return parse_benchmark(parser, argv, "benchmarks/claims/guidance_interval.json")


def measure_interval(
    pipe: DreamPosePipeline, clips: Sequence[Clip], part: tuple[float, float], num_steps: int | None
) -> dict[str, Any]:
    """Measure each clip with guidance in a part of the steps, and count the UNet's forward passes of a frame."""
    num_passes, num_frames, values = 0, 0, []

    def count_passes(unet: Any, arguments: tuple, *_: Any) -> None:
        nonlocal num_passes
        num_passes += len(arguments[0])

    counting = pipe.unet.register_forward_hook(count_passes)
    call = {"num_inference_steps": num_steps, "guidance_start": part[0], "guidance_stop": part[1]}
    for clip, frames, run in sample_clips(pipe, clips, **call):
        num_frames += len({*clip.frame_indices, *clip.run_indices})
        values.append(measure_sampled(clip, frames, run))
    counting.remove()
    return {"passes_per_frame": num_passes / num_frames, "clips": values}


def main(options: argparse.Namespace) -> dict:
    """Measure the missing intervals, print and write the report, and return it."""
    pipe, clips = load_model_and_clips(options)
    settings = {name: value for name, value in vars(options).items() if name not in RUN_OPTIONS}
    settings["num_inference_steps"] = options.num_inference_steps or pipe.config.default_num_inference_steps
    scales = pipe.config.default_image_guidance_scale, pipe.config.default_pose_guidance_scale
    folder = options.output.with_name(f".{options.output.stem}.parts")
    settings["digest"] = model_digest(pipe)
    common = {name: value for name, value in settings.items() if name != "intervals"}
    parts = {f"{part[0]:g} to {part[1]:g}": part for part in (ALL_STEPS, *options.intervals)}
    measures = {
        name: partial(measure_interval, pipe, clips, part, options.num_inference_steps) for name, part in parts.items()
    }
    kept = measure_missing(folder, common, options.resume, "intervals", measures, options.overwrite)
    whole = next(iter(kept.values()))["clips"]
    rows = {
        name: {"passes_per_frame": part["passes_per_frame"], **summarize(part["clips"], whole)}
        for name, part in kept.items()
    }
    versions = package_versions("torch", "diffusers")
    report = {"settings": settings, "versions": versions, "model_scales": scales, "rows": rows}
    write_json(options.output, report)
    remove_measurements(folder)
    for name, row in rows.items():
        differences = (format_mean(row[f"{m}_minus_reference"], 4) for m in METRICS if m in row)
        print(f"{name:14}{row['passes_per_frame']:6.2f}", *(f"{difference:>18}" for difference in differences))
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
