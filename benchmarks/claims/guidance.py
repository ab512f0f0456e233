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

from benchmarks.claims.clip_sampling import load_model_and_clips, measure_missing, remove_measurements, sample_clips
from benchmarks.scripts import package_versions, parse_benchmark, run_script
from pipeline_dreampose import DreamPosePipeline
from training.media.animation import model_digest, write_frame
from training.media.charts import heat_map
from training.media.pictures import enlarge, picture_grid, to_pictures
from training.media.settings_file import write_json
from training.metrics.baselines import measure
from training.metrics.clips import Clip
from training.metrics.frames import mean_and_standard_error
from training.options.clips import RUN_OPTIONS, add_clip_options, add_resume_options
from training.options.command import CommandParser


SCALES = [0.0, 1.0, 2.0, 3.0, 5.0, 8.0]
METRICS = {"psnr": 2, "silhouette_iou": 3}  # digits in the heat maps; the silhouette tells whether the pose is met


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add_clip_options(parser, split="validation", num_clips=8, frames_per_clip=2)
    add("--image_scales", nargs="+", type=float, default=SCALES, help="image guidance scales to pair")
    add("--pose_scales", nargs="+", type=float, default=SCALES, help="pose guidance scales to pair")
    add("--num_inference_steps", type=int, help="denoising steps per frame (default: the model's own)")
    add("--device", default="cpu", help="cpu, cuda, mps, ...")
    add("--scale", type=int, default=2, help="factor by which the pictures are enlarged")
    add_resume_options(parser.add_argument_group("after a stop"), "pairs")
    return parse_benchmark(parser, argv, "benchmarks/claims/guidance.json", ", with two pictures next to it")


def measure_pair(
    pipe: DreamPosePipeline, clips: Sequence[Clip], pair: tuple[float, float], num_steps: int | None, path: Path
) -> dict[str, list[float]]:
    """Measure each clip with one image and pose scale, and write the first clip's first frame to `path`."""
    scales = dict(zip(("image_guidance_scale", "pose_guidance_scale"), pair, strict=True))
    values, first = {name: [] for name in METRICS}, None
    for clip, frames in sample_clips(pipe, clips, num_inference_steps=num_steps, **scales):
        figures = measure(frames, clip.targets, clip.layers)
        for name in METRICS:
            values[name].append(figures[name])
        first = frames[:1] if first is None else first
    write_frame(to_pictures(first.mul(255).round().to(torch.uint8))[0], path)
    return values


def draw(pairs: dict, folder: Path, clip: Clip, options: argparse.Namespace) -> tuple[Image.Image, Image.Image]:
    """Draw a frame with every pair of scales above photo, pose and true frame, and heat maps of the mean figures."""
    titles, row_titles = [f"pose {p:g}" for p in options.pose_scales], [f"image {i:g}" for i in options.image_scales]
    grid = [[f"{i:g}, {p:g}" for p in options.pose_scales] for i in options.image_scales]
    rows = [[Image.open(folder / f"{name}.png") for name in row] for row in grid]
    rows.append([clip.reference, clip.iuv[clip.frame_indices[0]], clip.targets[0]])
    rows = [[enlarge(picture, options.scale) for picture in row] for row in rows]
    frames = picture_grid(rows, titles, row_titles=[*row_titles, "photo, pose, truth"])
    maps = []
    for metric, digits in METRICS.items():
        means = [[pairs[name][metric]["mean"] for name in row] for row in grid]
        maps.append(heat_map(means, titles, row_titles, digits))
    return frames, picture_grid([maps], [metric.replace("_", " ") for metric in METRICS], gap=16)


def main(options: argparse.Namespace) -> dict:
    """Measure the missing pairs, write the report and the pictures, and return the report."""
    pipe, clips = load_model_and_clips(options)
    settings = {name: value for name, value in vars(options).items() if name not in (*RUN_OPTIONS, "scale")}
    settings["num_inference_steps"] = options.num_inference_steps or pipe.config.default_num_inference_steps
    folder = options.output.with_name(f".{options.output.stem}.pairs")
    scales = ("image_scales", "pose_scales")  # a resumed run may ask for others
    common = {name: value for name, value in settings.items() if name not in scales} | {"model": model_digest(pipe)}
    pairs = {f"{i:g}, {p:g}": (i, p) for i, p in product(options.image_scales, options.pose_scales)}
    measures = {
        name: partial(measure_pair, pipe, clips, pair, options.num_inference_steps, folder / f"{name}.png")
        for name, pair in pairs.items()
    }
    kept = measure_missing(folder, common, options.resume, "pairs", measures, options.overwrite)
    values = {name: {m: torch.tensor(part[m]) for m in METRICS} for name, part in kept.items()}
    best = max(values, key=lambda name: values[name]["psnr"].mean().item())
    report = {
        "settings": settings,
        "versions": package_versions("torch", "diffusers"),
        "model_defaults": [pipe.config.default_image_guidance_scale, pipe.config.default_pose_guidance_scale],
        "best_psnr": list(pairs[best]),
        "pairs": {
            name: {metric: mean_and_standard_error(v) for metric, v in by_metric.items()}
            | {"psnr_minus_best": mean_and_standard_error(by_metric["psnr"] - values[best]["psnr"])}
            for name, by_metric in values.items()
        },
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
