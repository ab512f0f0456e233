# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Compare a distilled model with its teacher on held-out clips. Differences are taken clip by clip.

python -m benchmarks.claims.few_steps --lora model_card/tiny/fast
"""

import argparse
from functools import partial

from benchmarks.claims.clip_sampling import (
    add_consecutive_option,
    load_model_and_clips,
    measure_missing,
    remove_measurements,
    summarize,
)
from benchmarks.claims.few_step_rows import METRICS, TEACHER, draw_rows, measure_row, rows_of
from benchmarks.scripts import format_mean, package_versions, parse_benchmark, run_script
from training.hub.repositories import load_pipeline
from training.media.animation import model_digest
from training.media.settings_file import write_json
from training.options.clips import RUN_OPTIONS, add_clip_options, add_resume_options
from training.options.command import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id of the teacher")
    add("--lora", help="folder of the few-step LoRA, which distill.py wrote")
    add("--full", help="folder of a pipeline that distill.py wrote with `--train_mode full`")
    add_clip_options(parser, split="test", num_clips=40, frames_per_clip=4)
    add_consecutive_option(add, default=6)
    add("--steps", nargs="+", type=int, default=[1, 2, 4], help="numbers of denoising steps of a distilled model")
    add("--device", default="cpu", help="cpu, cuda, mps, ...")
    add_resume_options(parser.add_argument_group("after a stop"), "videos")
    return parse_benchmark(parser, argv, "benchmarks/claims/few_steps.json", ", with a picture next to it")


def print_report(report: dict) -> None:
    for metric in METRICS:
        print(f"\n{metric}")
        for name, row in report["rows"].items():
            difference = format_mean(row[f"{metric}_minus_teacher"], 4) if f"{metric}_minus_teacher" in row else ""
            print(f"{name:36}{format_mean(row[metric], 4):>20}{difference:>20}")


def main(options: argparse.Namespace) -> dict:
    """Measure what is missing, print and write the report, and return it."""
    if options.lora is None and options.full is None:
        raise ValueError("`lora` or `full` is missing: give the folder of a distilled model.")
    _, clips = load_model_and_clips(options)
    folder = options.output.with_name(f".{options.output.stem}.parts")
    settings = {name: value for name, value in vars(options).items() if name not in RUN_OPTIONS}
    rows = rows_of(options)
    digests = {
        name: model_digest(load_pipeline(model, options.device, lora=lora)) for name, (model, lora, _) in rows.items()
    }
    settings["digest"] = digests[TEACHER]
    common = {name: value for name, value in settings.items() if name != "steps"}
    where = (options.device, clips, options.num_consecutive)
    measures = {name: partial(measure_row, row, *where) for name, row in rows.items()}
    kept = measure_missing(folder, common, options.resume, "rows", measures, options.overwrite)
    report = {
        "settings": settings,
        "versions": package_versions("torch", "diffusers"),
        "digests": digests,
        "rows": {name: summarize(values, kept[TEACHER], "minus_teacher") for name, values in kept.items()},
    }
    write_json(options.output, report)
    draw_rows(rows, [clips[i] for i in range(min(8, len(clips)))], options.device).save(
        options.output.with_suffix(".png")
    )
    remove_measurements(folder)
    print_report(report)
    print(f"Wrote {options.output} and .png.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
