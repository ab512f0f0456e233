# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Measure the alignment of another body's poses: drawn drivers of other sizes, places and proportions, exact truth.

Each drawn subject is animated by its own poses, then by those of drivers in the same motion, drawn at four times the
pixels, at a random size and place. The script writes the figures as JSON, and a picture of one subject.

    python -m benchmarks.claims.alignment
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.claims.clip_sampling import measure_missing
from benchmarks.claims.drivers import CASES, drive
from benchmarks.scripts import count, package_versions, parse_benchmark, run_script
from benchmarks.subjects.trials import drawing_of
from pipeline_dreampose import DreamPosePipeline
from training.data.procedural_fashion import ProceduralFashionConfig
from training.hub.repositories import load_pipeline
from training.media.animation import model_digest
from training.media.pictures import picture_grid, to_pictures
from training.media.settings_file import write_json
from training.metrics.baselines import measure, sample_frames
from training.metrics.clips import draw_targets
from training.metrics.frames import mean_and_standard_error
from training.options.clips import RUN_OPTIONS, add_resume_options, check_clip_options
from training.options.command import CommandParser
from training.poses.alignment import MODES, align_poses


METRICS = ("psnr", "silhouette_iou")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add("--first_subject", type=int, default=20, help="first subject of the test split; earlier ones served to tune")
    add("--num_subjects", type=count, default=20, help="number of drawn subjects")
    add("--frames_per_clip", type=int, default=4, help="target frames per clip")
    add("--num_inference_steps", type=int, help="denoising steps per frame (default: the model's own)")
    add("--device", default="cpu", help="cpu, cuda, mps, ...")
    add_resume_options(parser.add_argument_group("after a stop"), "subjects")
    return parse_benchmark(parser, argv, "benchmarks/claims/alignment.json", ", with a picture next to it")


def measure_subject(
    pipe: DreamPosePipeline, config: ProceduralFashionConfig, index: int, options: argparse.Namespace, folder: Path
) -> dict[str, dict]:
    """Measure the frames by a subject's own poses and by each driver's, as filmed and aligned in each mode."""
    truth, drivers = drive(config, index)
    targets = draw_targets(len(truth), options.frames_per_clip, np.random.default_rng([config.seed, index]))
    photo, photo_iuv = (Image.fromarray(picture) for picture in (truth[0].image, truth[0].iuv))
    pictures, layers = ([Image.fromarray(getattr(truth[i], n)) for i in targets] for n in ("image", "layers"))
    call, figures, row = {"num_inference_steps": options.num_inference_steps}, {}, []
    poses = {("own poses", ""): drivers["in place"]}
    for case, filmed in drivers.items():
        poses |= {(case, "as filmed"): filmed} | {(case, mode): align_poses(filmed, photo_iuv, mode) for mode in MODES}
    for (case, mode), iuv in poses.items():
        frames = sample_frames(pipe, photo, iuv, targets, photo.size, index, **call)
        values = measure(frames, pictures, layers)
        figures.setdefault(case, {})[mode] = {name: values[name] for name in METRICS}
        row.append((iuv[targets[-1]], to_pictures(frames[-1:].mul(255).round().to(torch.uint8))[0]))
    if index == options.first_subject:
        draw(row, list(poses), photo.size).save(folder / "picture.png")
    return figures


def draw(row: list[tuple], titles: list[tuple[str, str]], size: tuple[int, int]) -> Image.Image:
    """Draw the poses, whose parts are told by brighter colours, above the frames that they give."""
    bright = [Image.fromarray(np.asarray(iuv) * np.array([1, 1, 10], np.uint8)) for iuv, _ in row]
    shown = [picture.resize(size, Image.Resampling.NEAREST) for picture in bright]
    frames = [frame for _, frame in row]
    return picture_grid([shown, frames], [mode if mode in MODES else case for case, mode in titles])


def summarize(kept: dict[str, dict]) -> dict:
    """Return mean figures of each case and mode, and how far each stays behind the subject's own poses."""
    own = [subject["own poses"][""] for subject in kept.values()]
    rows = {case: {} for case in ("own poses", *CASES)}
    for case, mode in ((case, mode) for case in rows for mode in next(iter(kept.values()))[case]):
        values = [subject[case][mode] for subject in kept.values()]
        lost = [{"psnr_lost": o["psnr"] - v["psnr"]} | v for o, v in zip(own, values, strict=True)]
        rows[case][mode] = {name: mean_and_standard_error(torch.tensor([v[name] for v in lost])) for name in lost[0]}
    return rows


def main(options: argparse.Namespace) -> dict:
    """Measure the missing subjects, write the report and the picture, and return the report."""
    check_clip_options(options)
    config = drawing_of(options.model)
    pipe = load_pipeline(options.model, options.device)
    pipe.set_progress_bar_config(disable=True)
    settings = {name: value for name, value in vars(options).items() if name not in RUN_OPTIONS}
    settings["digest"] = model_digest(pipe)
    folder = options.output.with_name(f".{options.output.stem}.subjects")
    subjects = range(options.first_subject, options.first_subject + options.num_subjects)
    measures = {str(index): partial(measure_subject, pipe, config, index, options, folder) for index in subjects}
    common = settings | {"num_subjects": "any"}
    kept = measure_missing(folder, common, options.resume, "subjects", measures, options.overwrite)
    report = {"settings": settings, "versions": package_versions("torch", "diffusers"), "rows": summarize(kept)}
    write_json(options.output, report)
    (folder / "picture.png").replace(options.output.with_suffix(".png"))
    shutil.rmtree(folder)
    for case, modes in report["rows"].items():
        for mode, row in modes.items():
            print(f"{case:24}{mode:10}", *(f"{name} {row[name]['mean']:.3f}" for name in (*METRICS, "psnr_lost")))
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
