# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Compare the small model's frames, shrunk to half, with the same clips drawn at half the size.

So a model that makes frames of half the height and width can be compared with it.

    python -m benchmarks.claims.half_size --lora model_card/tiny/fast
"""

import argparse
from collections.abc import Sequence

import torch.nn.functional as F

from benchmarks.claims.clip_sampling import sample_clips, summarize
from benchmarks.scripts import count, format_mean, package_versions, parse_benchmark, run_script
from pipeline_dreampose import DreamPosePipeline
from training.hub.repositories import default_size, load_pipeline
from training.media.animation import model_digest
from training.media.settings_file import write_json
from training.metrics.baselines import measure, to_tensor
from training.metrics.clips import Clip, load_clips
from training.metrics.learned import LearnedMetrics
from training.options.command import CommandParser


METRICS = ("psnr", "ssim", "foreground_psnr", "cloth_psnr", "identity_distance")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id, of frames of 160x128 pixels")
    add("--lora", help="folder of the model's few-step LoRA, to measure it too")
    add("--num_clips", type=count, default=40, help="clips of the test split to measure")
    add("--frames_per_clip", type=count, default=4, help="target frames per clip")
    return parse_benchmark(parser, argv, "benchmarks/claims/half_size.json")


def measure_halves(
    pipe: DreamPosePipeline, clips: Sequence[Clip], halves: Sequence[Clip]
) -> list[dict[str, float | None]]:
    """Sample the clips, shrink the frames by means over 2x2 pixels, and measure them by clips of half the size."""
    learned, values = LearnedMetrics(pipe), []
    for (_, frames, _), half in zip(sample_clips(pipe, clips), halves, strict=True):
        shrunk = F.avg_pool2d(frames, 2)
        figures = measure(shrunk, half.targets, half.layers) | learned.measure(shrunk, to_tensor(half.targets))
        values.append({name: figures[name] for name in METRICS})
    return values


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, and return it."""
    width, height = default_size(options.model)
    chosen = options.num_clips, options.frames_per_clip
    clips = load_clips("procedural", "test", *chosen, size=(width, height))
    halves = load_clips("procedural/half", "test", *chosen, size=(width // 2, height // 2))
    loras = {"stored steps": None} | ({} if options.lora is None else {"few-step LoRA": options.lora})
    rows, digests = {}, {}
    for name, lora in loras.items():
        pipe = load_pipeline(options.model, "cpu", lora=lora)
        pipe.set_progress_bar_config(disable=True)
        rows[name] = summarize(measure_halves(pipe, clips, halves))
        digests[name] = model_digest(pipe)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    settings["digest"] = digests["stored steps"]
    report = {"settings": settings, "versions": package_versions("torch", "diffusers"), "rows": rows}
    write_json(options.output, report)
    for name, row in rows.items():
        print(f"{name:16}", *(f"{metric} {format_mean(row[metric], 4)}" for metric in METRICS))
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
