# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What stage 2 gives: drawn subjects that stage 1 never saw, learnt from one photo and from four, measured on poses
that no photo shows. Every trial is kept in `--work_dir`: a stopped run is simply started again.

    python -m benchmarks.subjects.gains --output results.json [options of this script] -- [options of
    training/finetune.py]
"""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks.subjects.planning import parse_stage_two, plan_trials, split_words, taken_options
from benchmarks.subjects.report import draw_curves, print_report, run_all, summarize
from benchmarks.subjects.trials import add_subject_options
from training.media.settings_file import write_json
from training.options.subject import METHOD_OPTIONS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_subject_options(parser, Path("runs/subjects"))
    parser.add_argument("--num_photos", type=int, nargs="+", choices=range(1, 5), default=[1, 4])
    parser.add_argument("--num_clips", type=int, default=0, help="learn from so many clips of other motions, no photo")
    parser.add_argument("--curve_steps", type=int, help="measure every so many steps too, and draw it beside the JSON")
    words, finetune = split_words(argv)
    options = parser.parse_args(words)
    options.finetune = parse_stage_two(METHOD_OPTIONS, finetune)
    if len(set(options.num_photos)) < len(options.num_photos):
        raise ValueError(f"`num_photos` must be numbers that differ, got {options.num_photos}.")
    num_cached_crops = taken_options(options.finetune)["num_cached_crops"]
    if options.num_clips and (len(options.num_photos), num_cached_crops) != (1, 0):
        got = f"{options.num_clips}, {options.num_photos} and {num_cached_crops}"
        raise ValueError(f"`num_clips` must be 0, or `num_photos` one number and `num_cached_crops` 0, got {got}.")
    return options


def main(options: argparse.Namespace) -> dict:
    """Run what is missing, print the figures and write them, which are returned."""
    trials = plan_trials(options, options.finetune, options.num_photos, options.num_clips, options.curve_steps)
    results = run_all(trials, options.work_dir, options.num_processes)
    report = {
        "settings": {
            **{name: str(v) for name, v in vars(options).items() if name not in ("finetune", "output", "work_dir")},
            "digest": trials[0].digest,
            "finetune": taken_options(options.finetune),
        },
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
        "num_photos": {
            number: summarize([r for t, r in zip(trials, results) if t.num_photos == number])
            for number in options.num_photos
        },
    }
    print_report(report)
    if options.output is not None:
        write_json(options.output, report)
        if options.curve_steps is not None:
            draw_curves(report).save(options.output.with_suffix(".png"), optimize=True)
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"subjects.py: error: {error}") from None
