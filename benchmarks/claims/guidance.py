# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Choose the guidance scales of a saved model: measure every pair of image and pose scales on validation clips.

The script writes the figures as JSON, a labelled picture of one frame with every pair, and heat maps.

    python -m benchmarks.claims.guidance --model model_card/tiny
"""

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from PIL import Image

from benchmarks.claims.clip_sampling import (
    add_consecutive_option,
    load_model_and_clips,
    measure_missing,
    measure_sampled,
    remove_measurements,
    sample_clips,
    summarize,
)
from benchmarks.scripts import package_versions, parse_benchmark, run_script
from pipeline_dreampose import DreamPosePipeline
from training.media.animation import model_digest, write_frame
from training.media.charts import heat_map
from training.media.pictures import picture_grid, to_pictures
from training.media.settings_file import write_json
from training.metrics.clips import Clip
from training.options.clips import RUN_OPTIONS, add_clip_options, add_resume_options
from training.options.command import CommandParser


SCALES = [0.0, 1.0, 2.0, 3.0, 5.0, 8.0]
HEAT_MAPS = {"psnr": 2, "silhouette_iou": 3}  # with their digits; the silhouette tells whether the pose is met


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add_clip_options(parser, split="validation", num_clips=8, frames_per_clip=2)
    add_consecutive_option(add, default=0)
    add("--image_scales", nargs="+", type=float, default=SCALES, help="image guidance scales to pair")
    add("--pose_scales", nargs="+", type=float, default=SCALES, help="pose guidance scales to pair")
    add("--num_inference_steps", type=int, help="denoising steps per frame (default: the model's own)")
    add("--device", default="cpu", help="cpu, cuda, mps, ...")
    add_resume_options(parser.add_argument_group("after a stop"), "pairs")
    return parse_benchmark(parser, argv, "benchmarks/claims/guidance.json", ", with two pictures next to it")


def measure_pair(
    pipe: DreamPosePipeline, clips: Sequence[Clip], pair: tuple[float, float], num_steps: int | None, path: Path
) -> list[dict[str, float]]:
    """Measure each clip with one image and pose scale, and write the first clip's first frame to `path`."""
    scales = dict(zip(("image_guidance_scale", "pose_guidance_scale"), pair, strict=True))
    values, first = [], None
    for clip, frames, run in sample_clips(pipe, clips, num_inference_steps=num_steps, guidance_stop=1.0, **scales):
        values.append(measure_sampled(clip, frames, run))
        first = frames[:1] if first is None else first
    write_frame(to_pictures(first.mul(255).round().to(torch.uint8))[0], path)
    return values


def draw(pairs: dict, folder: Path, clip: Clip, options: argparse.Namespace) -> tuple[Image.Image, Image.Image]:
    """Draw a frame with every pair of scales above photo, pose and true frame, and heat maps of the mean figures."""
    titles, row_titles = [f"pose {p:g}" for p in options.pose_scales], [f"image {i:g}" for i in options.image_scales]
    grid = [[f"{i:g}, {p:g}" for p in options.pose_scales] for i in options.image_scales]
    rows = [[Image.open(folder / f"{name}.png") for name in row] for row in grid]
    rows.append([clip.reference, clip.iuv[clip.frame_indices[0]], clip.targets[0]])
    frames = picture_grid(rows, titles, row_titles=[*row_titles, "photo, pose, truth"])
    maps = []
    for metric, digits in HEAT_MAPS.items():
        means = [[pairs[name][metric]["mean"] for name in row] for row in grid]
        maps.append(heat_map(means, titles, row_titles, digits))
    return frames, picture_grid([maps], [metric.replace("_", " ") for metric in HEAT_MAPS], gap=16)


def main(options: argparse.Namespace) -> dict:
    """Measure the missing pairs, write the report and the pictures, and return the report."""
    pipe, clips = load_model_and_clips(options)
    settings = {name: value for name, value in vars(options).items() if name not in RUN_OPTIONS}
    settings["num_inference_steps"] = options.num_inference_steps or pipe.config.default_num_inference_steps
    folder = options.output.with_name(f".{options.output.stem}.pairs")
    scales = ("image_scales", "pose_scales")  # a resumed run may ask for others
    settings["digest"] = model_digest(pipe)
    common = {name: value for name, value in settings.items() if name not in scales}
    pairs = {f"{i:g}, {p:g}": (i, p) for i, p in product(options.image_scales, options.pose_scales)}
    measures = {
        name: partial(measure_pair, pipe, clips, pair, options.num_inference_steps, folder / f"{name}.png")
        for name, pair in pairs.items()
    }
    kept = measure_missing(folder, common, options.resume, "pairs", measures, options.overwrite)
    best = max(kept, key=lambda name: sum(values["psnr"] for values in kept[name]))
    report = {
        "settings": settings,
        "versions": package_versions("torch", "diffusers"),
        "model_defaults": [pipe.config.default_image_guidance_scale, pipe.config.default_pose_guidance_scale],
        "best_psnr": list(pairs[best]),
        "pairs": {name: summarize(values, kept[best], "minus_best") for name, values in kept.items()},
    }
    write_json(options.output, report)
    stem = options.output.with_suffix("")
    for name, picture in zip(("frames", "heat"), draw(report["pairs"], folder, clips[0], options)):
        picture.save(f"{stem}_{name}.png")
    remove_measurements(folder)
    print(f"Best PSNR at image {pairs[best][0]:g}, pose {pairs[best][1]:g}; wrote {options.output}, {stem}_*.png.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
