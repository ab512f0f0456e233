# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Choose the scheduler that a saved model stores: measure PSNR on validation clips by scheduler and number of steps.

The script writes the figures as JSON and a heat map.

    python -m benchmarks.claims.schedulers --model model_card/tiny
"""

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product

import diffusers
import torch

from benchmarks.claims.clip_sampling import load_model_and_clips, measure_missing, remove_measurements, sample_clips
from benchmarks.scripts import package_versions, parse_benchmark, run_script
from pipeline_dreampose import DreamPosePipeline
from training.media.animation import model_digest
from training.media.charts import heat_map
from training.media.settings_file import write_json
from training.metrics.baselines import to_tensor
from training.metrics.clips import Clip
from training.metrics.frames import mean_and_standard_error, psnr
from training.options.clips import RUN_OPTIONS, add_clip_options, add_resume_options
from training.options.command import CommandParser


SCHEDULERS = {  # name -> class, changes to the model's scheduler settings
    "DDIM": ("DDIMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
DEFAULT = ["DDIM", "PNDM", "DPM-Solver++", "UniPC"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add_clip_options(parser, split="validation", num_clips=8, frames_per_clip=2)
    add("--schedulers", nargs="+", choices=SCHEDULERS, default=DEFAULT, help="schedulers to measure")
    add("--steps", nargs="+", type=int, default=[4, 6, 10, 15, 25, 50, 100], help="numbers of denoising steps")
    add("--reference_steps", type=int, default=100, help="steps of DDIM, with which all are compared")
    add("--device", default="cpu", help="cpu, cuda, mps, ...")
    add_resume_options(parser.add_argument_group("after a stop"), "videos")
    return parse_benchmark(parser, argv, "benchmarks/claims/schedulers.json", ", with a heat map next to it")


def measure_clips(pipe: DreamPosePipeline, clips: Sequence[Clip], name: str, steps: int) -> list[float]:
    """Return the PSNR of each clip to its true frames, with a scheduler and a number of steps."""
    class_name, changes = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **changes)
    sampled = sample_clips(pipe, clips, num_inference_steps=steps)
    return [psnr(frames, to_tensor(clip.targets)).mean().item() for clip, frames in sampled]


def print_report(report: dict, names: list[str], steps: list[int]) -> None:
    print(f"DDIM, {report['settings']['reference_steps']} steps: {report['reference']['mean']:.2f} dB; difference:")
    print(" " * 14, *(f"{number:>13d}" for number in steps))
    for name in names:
        cells = [report["rows"][name][number]["minus_reference"] for number in steps]
        errors = ["" if c["standard_error"] is None else f" ± {c['standard_error']:.2f}" for c in cells]
        print(f"{name:14}", *(f"{c['mean']:+6.2f}{error:7}" for c, error in zip(cells, errors, strict=True)))


def main(options: argparse.Namespace) -> dict:
    """Measure what is missing, print and write the report, and return it."""
    pipe, clips = load_model_and_clips(options)
    folder = options.output.with_name(f".{options.output.stem}.parts")
    names = ("dataset", "split", "num_clips", "frames_per_clip", "device")
    common = {name: getattr(options, name) for name in names} | {"model": model_digest(pipe)}
    cells = list(product(options.schedulers, options.steps))
    measures = {
        f"{name} {steps}": partial(measure_clips, pipe, clips, name, steps)
        for name, steps in [("DDIM", options.reference_steps), *cells]
    }
    kept = measure_missing(folder, common, options.resume, "schedulers and steps", measures, options.overwrite)
    reference, rows = torch.tensor(kept[f"DDIM {options.reference_steps}"]), {}
    for name, steps in cells:
        values = torch.tensor(kept[f"{name} {steps}"])
        rows.setdefault(name, {})[steps] = {
            "psnr": mean_and_standard_error(values),
            "minus_reference": mean_and_standard_error(values - reference),
        }
    report = {
        "settings": {name: value for name, value in vars(options).items() if name not in RUN_OPTIONS},
        "versions": package_versions("torch", "diffusers"),
        "reference": mean_and_standard_error(reference),
        "rows": rows,
    }
    write_json(options.output, report)
    means = [[rows[name][steps]["psnr"]["mean"] for steps in options.steps] for name in rows]
    heat_map(means, [f"{steps} steps" for steps in options.steps], list(rows)).save(options.output.with_suffix(".png"))
    remove_measurements(folder)
    print_report(report, list(rows), options.steps)
    print(f"Wrote {options.output} and .png.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
