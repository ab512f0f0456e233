# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Gain from copying the body's texture out of a subject's photos by the true IUV, without training.

The baseline is the model's frames of `benchmarks.subjects.gains` before stage 2. In `read`, each body pixel that a
photo shows is taken from the nearest point in the photos. In `oracle`, it is taken only where it is closer to the
truth, which no model can know.

    python -m benchmarks.subjects.bound --num_subjects 20
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.kept_jobs import kept_path, run_missing
from benchmarks.scripts import format_mean, parse_benchmark, run_script
from benchmarks.subjects.trials import (
    RECORDS_VERSION,
    Examination,
    add_subject_options,
    draw_footage,
    draw_photos,
    drawing_of,
    numbers_of_subjects,
)
from training.hub.repositories import load_pipeline
from training.media.animation import model_digest
from training.media.settings_file import write_json
from training.metrics.baselines import measure, to_tensor
from training.metrics.frames import mean_and_standard_error
from training.metrics.warping import UV_TOLERANCE, take_from_photos
from training.models.base_pipeline import load_subject_base
from training.options.command import CommandParser


METRICS = ("psnr", "ssim", "l1", "foreground_psnr")
NUM_PHOTOS = (1, 4)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add_subject_options(parser, Path("runs/subject_bound"))
    return parse_benchmark(parser, argv, "benchmarks/subjects/bound.json")


def measure_subject(model: str, split: str, index: int, num_inference_steps: int) -> dict[str, dict[str, float]]:
    """Measure one subject's frames: `model`, and `read` and `oracle` for each number of photos."""
    config = drawing_of(model)
    photos, footage = draw_photos(config, split, index, max(NUM_PHOTOS)), draw_footage(config, split, index)
    pipeline = load_subject_base(model, height=config.height, width=config.width)
    examination = Examination(pipeline, photos[:1], footage, num_inference_steps)
    predicted = examination.sample_new()
    targets, layers = ([x for part in footage for x in getattr(part, name)] for name in ("targets", "layers"))
    truth, poses = to_tensor(targets), [part.iuv[i] for part in footage for i in part.frame_indices]
    frames = {"model": predicted}
    for num_photos in NUM_PHOTOS:
        known = [(Image.fromarray(photo.image), Image.fromarray(photo.iuv)) for photo in photos[:num_photos]]
        pixels, distances = map(torch.stack, zip(*(take_from_photos(known, iuv) for iuv in poses)))
        is_shown = distances[:, None] <= UV_TOLERANCE
        is_better = is_shown & ((pixels - truth).abs().sum(1, True) < (predicted - truth).abs().sum(1, True))
        frames[f"read_{num_photos}"] = torch.where(is_shown, pixels, predicted)
        frames[f"oracle_{num_photos}"] = torch.where(is_better, pixels, predicted)
    return {name: measure(values, targets, layers) for name, values in frames.items()}


def summarize(results: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict]]:
    """Return the gains over the model's own frames, averaged over subjects, by name and metric."""
    values = {
        name: {m: torch.tensor([r[name][m] - r["model"][m] for r in results], dtype=torch.float64) for m in METRICS}
        for name in results[0]
        if name != "model"
    }
    return {name: {m: mean_and_standard_error(v) for m, v in by.items()} for name, by in values.items()}


def main(options: argparse.Namespace) -> dict:
    """Measure the missing subjects, print and write the gains, and return the report."""
    digest = model_digest(load_pipeline(options.model))
    facts, jobs = [RECORDS_VERSION, digest, options.num_inference_steps], {}
    for index in numbers_of_subjects(options):
        path = kept_path(options.work_dir, f"{options.split}-{index:03d}", facts)
        jobs[path] = (options.model, options.split, index, options.num_inference_steps)
    gains = summarize(run_missing(measure_subject, jobs, options.num_processes, "subject"))
    names = ("model", "split", "num_subjects", "first_subject", "num_inference_steps")
    report = {"settings": {name: getattr(options, name) for name in names} | {"digest": digest}, "gains": gains}
    for name, by_metric in gains.items():
        print(f"{name:10}", "  ".join(f"{metric} {format_mean(value)}" for metric, value in by_metric.items()))
    write_json(options.output, report)
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
