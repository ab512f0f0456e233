# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Choose the scheduler and the number of steps that a saved model stores, by figures of held-out clips.

The script writes the figures as JSON, with a heat map of PSNR. Differences to the reference are taken clip by clip.

    python -m benchmarks.claims.schedulers --model model_card/tiny
"""

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product

import diffusers

from benchmarks.claims.clip_sampling import (
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
from training.media.charts import heat_map
from training.media.settings_file import write_json
from training.metrics.clips import Clip
from training.options.clips import RUN_OPTIONS, add_clip_options, add_resume_options
from training.options.command import CommandParser


CLASSES = {  # name -> class, changes to the model's scheduler settings
    "DDIM": ("DDIMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
# With leading spacing the first timestep lies below the last one of training, with trailing spacing it is that one.
SCHEDULERS = {name: (kind, changes | {"timestep_spacing": "leading"}) for name, (kind, changes) in CLASSES.items()} | {
    f"{name} trailing": (kind, changes | {"timestep_spacing": "trailing"}) for name, (kind, changes) in CLASSES.items()
}
DEFAULT = ["DDIM", "PNDM", "DPM-Solver++", "UniPC", "DDIM trailing", "DPM-Solver++ trailing", "UniPC trailing"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add_clip_options(parser, split="validation", num_clips=16, frames_per_clip=2)
    add_consecutive_option(add, default=0)
    add("--schedulers", nargs="+", choices=SCHEDULERS, default=DEFAULT, help="schedulers to measure")
    add("--steps", nargs="+", type=int, default=[3, 4, 6, 10, 15], help="numbers of denoising steps")
    add("--reference", choices=SCHEDULERS, default="DDIM", help="scheduler with which all are compared")
    add("--reference_steps", type=int, default=100, help="denoising steps of the reference")
    add("--device", default="cpu", help="cpu, cuda, mps, ...")
    add_resume_options(parser.add_argument_group("after a stop"), "videos")
    return parse_benchmark(parser, argv, "benchmarks/claims/schedulers.json", ", with a heat map next to it")


def measure_clips(pipe: DreamPosePipeline, clips: Sequence[Clip], name: str, steps: int) -> list[dict[str, float]]:
    """Measure each clip with a scheduler and a number of steps."""
    class_name, changes = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **changes)
    call = {"num_inference_steps": steps, "guidance_stop": 1.0}  # guided in every step, so that all are comparable
    return [measure_sampled(*sampled) for sampled in sample_clips(pipe, clips, **call)]


def print_report(report: dict, names: list[str], steps: list[int]) -> None:
    settings = report["settings"]
    print(f"Difference to {settings['reference']} with {settings['reference_steps']} steps:")
    for metric, reference in report["reference"].items():
        print(f"\n{metric}, {reference['mean']:.4f}:".ljust(24), *(f"{number:>18d}" for number in steps))
        for name in names:
            figures = [report["rows"][name][number][f"{metric}_minus_reference"] for number in steps]
            print(f"{name:22}", *(f"{format_mean(figure, 4):>18}" for figure in figures))


def main(options: argparse.Namespace) -> dict:
    """Measure what is missing, print and write the report, and return it."""
    pipe, clips = load_model_and_clips(options)
    folder = options.output.with_name(f".{options.output.stem}.parts")
    settings = {name: value for name, value in vars(options).items() if name not in RUN_OPTIONS}
    chosen = ("schedulers", "steps", "reference", "reference_steps")  # a resumed run may ask for others
    settings["digest"] = model_digest(pipe)
    common = {name: value for name, value in settings.items() if name not in chosen}
    cells = list(product(options.schedulers, options.steps))
    measures = {
        f"{name} {steps}": partial(measure_clips, pipe, clips, name, steps)
        for name, steps in [(options.reference, options.reference_steps), *cells]
    }
    kept = measure_missing(folder, common, options.resume, "schedulers and steps", measures, options.overwrite)
    reference, rows = kept[f"{options.reference} {options.reference_steps}"], {}
    for name, steps in cells:
        rows.setdefault(name, {})[steps] = summarize(kept[f"{name} {steps}"], reference)
    report = {
        "settings": settings,
        "versions": package_versions("torch", "diffusers"),
        "reference": summarize(reference),
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
