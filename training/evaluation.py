# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Measure a saved pipeline on held-out clips, beside the baselines that its figures must be read against.

python training/evaluation.py --model model_card/tiny --dataset procedural --split test --output results
"""

import argparse
import json
import os
import platform
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image

from training.baselines import evaluate, markdown_table, predict_clip
from training.clips import Clip, load_clips
from training.hub import load_pipeline
from training.pictures import enlarge, picture_grid


LIBRARIES = ("torch", "diffusers", "transformers", "datasets", "torchmetrics", "numpy", "pillow")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a saved pipeline on held-out clips.")
    parser.add_argument("--model", required=True, help="pipeline folder or Hub id")
    parser.add_argument(
        "--dataset", default="procedural", help="`procedural`, a prepared folder or a Hub id (default: procedural)"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of evaluation.json, .md and .png")
    parser.add_argument("--num_clips", type=int, default=40)
    parser.add_argument("--frames_per_clip", type=int, default=4)
    parser.add_argument("--num_inference_steps", type=int, help="default: the model's own, as for the scales")
    parser.add_argument("--image_guidance_scale", type=float)
    parser.add_argument("--pose_guidance_scale", type=float)
    parser.add_argument("--chunk_size", type=int, default=8, help="frames denoised at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (clip i: seed + i) and the choice of frames")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--num_pictures", type=int, default=8, help="clips shown in evaluation.png")
    parser.add_argument("--scale", type=int, default=3, help="enlarges evaluation.png")
    return parser.parse_args(argv)


def draw_pictures(clips: list[Clip], predictions: list[dict[str, torch.Tensor]], scale: int) -> Image.Image:
    """Clips side by side, the last target of each."""
    titles = ["photo", "pose", "truth", "prediction"]
    has_other = all(clip.other_reference is not None for clip in clips)
    rows = []
    for clip, predicted in zip(clips, predictions, strict=True):
        row = [clip.reference, clip.iuv[clip.frame_indices[-1]], clip.targets[-1], _to_picture(predicted["own"][-1])]
        row += [clip.other_reference, _to_picture(predicted["other_photo"][-1])] if has_other else []
        rows.append([enlarge(picture, scale) for picture in row])
    return picture_grid(rows, titles + (["another photo", "prediction"] if has_other else []))


def _to_picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy())


def describe_machine() -> dict:
    cpu_info = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in cpu_info if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def main(options: argparse.Namespace) -> dict:
    start = time.perf_counter()
    clips = load_clips(options.dataset, options.split, options.num_clips, options.frames_per_clip, options.seed)
    pipe = load_pipeline(options.model, options.device, options.dtype)
    pipe.set_progress_bar_config(disable=True)
    call_names = ("num_inference_steps", "image_guidance_scale", "pose_guidance_scale", "chunk_size")
    call_options = {name: getattr(options, name) for name in call_names}
    predict = partial(predict_clip, pipe, **call_options)
    figures, kept = evaluate(clips, lambda clip, i: predict(clip, seed=options.seed + i), options.num_pictures)
    moved = [moved for clip in clips for moved in clip.moved or ()]
    results = {
        **figures,
        "share_moved": sum(moved) / len(moved) if moved else None,
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()},
        "model_defaults": {name: pipe.config.get(f"default_{name}") for name in call_names[:3]},
        "scheduler": type(pipe.scheduler).__name__,
        "versions": {name: version(name) for name in LIBRARIES},
        "machine": describe_machine(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    table = markdown_table(results["rows"])
    (options.output / "evaluation.md").write_text(table)
    if kept:
        draw_pictures(clips[: len(kept)], kept, options.scale).save(options.output / "evaluation.png")
    print(table, "model minus row, clip by clip:\n", markdown_table(results["model_minus_row"]), sep="\n")
    print(f"{results['seconds']} s; {options.output / 'evaluation.json'}")
    return results


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"evaluation.py: error: {error}") from None
