# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Which guidance scales suit a saved model: every pair of image and pose scales on validation clips, as figures, a
labelled grid of pictures and heat maps. Stopped, it goes on with --resume.

python -m benchmarks.claims.guidance --model model_card/tiny
"""

import argparse
import json
import shutil
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from tqdm.auto import tqdm

from benchmarks.claims.guidance_pairs import METRICS, draw_heat, draw_pictures, measure_pair, pair_name, pair_path
from training.hub.repositories import default_size, load_pipeline
from training.media.animation import model_digest, open_frames
from training.media.settings_file import write_json
from training.metrics.clips import load_clips
from training.metrics.frames import mean_and_standard_error
from training.options.clips import add_clip_options, check_clip_options


SCALES = [0.0, 1.0, 2.0, 3.0, 5.0, 8.0]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add_clip_options(parser, split="validation", num_clips=8, frames_per_clip=2)
    add("--image_scales", nargs="+", type=float, default=SCALES)
    add("--pose_scales", nargs="+", type=float, default=SCALES)
    add("--num_inference_steps", type=int, help="default: the model's own")
    add("--device", default="cpu")
    add("--scale", type=int, default=2, help="enlarges the pictures")
    add("--resume", action="store_true", help="go on with the pairs of a run that was stopped")
    add("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="two .png lie beside it")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> dict:
    """Measure what is missing, draw it and write the report, which is returned."""
    check_clip_options(options)
    chosen, size = (options.num_clips, options.frames_per_clip), default_size(options.model)
    clips = load_clips(options.dataset, options.split, *chosen, size=size)  # each is read when it is measured
    pipe = load_pipeline(options.model, options.device)
    pipe.set_progress_bar_config(disable=True)
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "resume", "scale")}
    settings["num_inference_steps"] = options.num_inference_steps or pipe.config.default_num_inference_steps
    folder = options.output.with_name(f".{options.output.stem}.pairs")
    # Which pairs are asked for is no setting of a pair: a run that goes on may want others.
    scales = ("image_scales", "pose_scales")
    begun = {name: value for name, value in settings.items() if name not in scales}
    open_frames(folder, begun | {"model": model_digest(pipe)}, options.resume, unit="pairs")
    pairs = list(product(options.image_scales, options.pose_scales))
    for pair in tqdm(pairs, unit="pair"):
        if not pair_path(folder, *pair).exists():
            measure_pair(pipe, clips, pair, options.num_inference_steps, folder)
    parts = {pair: json.loads(pair_path(folder, *pair).with_suffix(".json").read_text()) for pair in pairs}
    values = {pair: {name: torch.tensor(part[name]) for name in METRICS} for pair, part in parts.items()}
    best = max(pairs, key=lambda pair: values[pair]["psnr"].mean().item())
    report = {
        "settings": settings,
        "versions": {name: version(name) for name in ("torch", "diffusers")},
        "model_defaults": [pipe.config.default_image_guidance_scale, pipe.config.default_pose_guidance_scale],
        "best_psnr": list(best),
        "pairs": {
            pair_name(*pair): {name: mean_and_standard_error(v) for name, v in by_metric.items()}
            | {"psnr_minus_best": mean_and_standard_error(by_metric["psnr"] - values[best]["psnr"])}
            for pair, by_metric in values.items()
        },
    }
    write_json(options.output, report)
    grid, stem = (options.image_scales, options.pose_scales), options.output.with_suffix("")
    draw_pictures(folder, *grid, clips[0], options.scale).save(f"{stem}_frames.png")
    draw_heat(report["pairs"], *grid).save(f"{stem}_heat.png")
    shutil.rmtree(folder)
    print(f"Best PSNR at image {best[0]:g}, pose {best[1]:g}; wrote {options.output}, {stem}_*.png.")
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"guidance.py: error: {error}") from None
