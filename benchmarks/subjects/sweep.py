# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Vary the settings of stage 2 one by one, on drawn validation subjects.

Only variations that set `decoder_max_train_steps` train the decoder. Every finished trial is kept in `--work_dir`, so
a stopped run resumes when it is started again. Options after `--` are those of training/finetune.py.

    python -m benchmarks.subjects.sweep [options] -- --prior_dataset FOLDER [options of finetune.py]
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from benchmarks.scripts import parse_benchmark, run_script
from benchmarks.subjects.many_trials import (
    compare_with_first,
    format_sweep,
    parse_stage_two,
    plan_trials,
    run_all,
    split_words,
    summarize,
    taken_options,
)
from benchmarks.subjects.trials import add_subject_options
from training.media.charts import line_chart
from training.media.pictures import picture_grid
from training.media.settings_file import write_json
from training.options.command import CommandParser
from training.options.parsing import option_values
from training.options.subject import METHOD_OPTIONS


CURVES = {"other poses": "foreground_psnr", "the photos' own poses": "own_pose_foreground_psnr"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(usage="%(prog)s [--OPTION VALUE ...] -- [OPTIONS OF finetune.py]", description=__doc__)
    add_subject_options(parser, Path("runs/subjects"))
    add = parser.add_argument_group("training").add_argument
    add("--num_photos", type=int, choices=range(1, 5), default=1, help="photos to learn from")
    names = "YAML file with the options that differ, by a variation's name (default: sweep.yaml)"
    add("--variations", type=Path, default=Path(__file__).with_suffix(".yaml"), help=names)
    parser.set_defaults(split="validation", num_subjects=8)
    words, finetune = split_words(argv)
    beside = ", with the table and the curves next to it"
    options = parse_benchmark(parser, words, "benchmarks/subjects/sweep.json", beside)
    if options.num_subjects < 2:
        raise ValueError(f"`num_subjects` must be 2 or more, for a standard error, got {options.num_subjects}.")
    options.finetune = read_variations(options.variations, finetune)
    return options


def read_variations(path: Path, finetune: Sequence[str]) -> dict[str, tuple[dict[str, Any], tuple]]:
    """Read the variations by name: the options in which each differs from the command line, and all its options.

    Raises:
        ValueError: If the first variation, with which the others are compared, differs in any option.
    """
    variations = {}
    for name, differing in yaml.safe_load(path.read_text()).items():
        words = [f"--{option}={value}" for option, value in differing.items()]
        argv = [*finetune, "--decoder_max_train_steps", "0", *words]
        variations[name] = (differing, parse_stage_two(METHOD_OPTIONS, argv))
    first = next(iter(variations), None)
    if first is None or variations[first][0]:
        raise ValueError(f"`variations` must begin with one that differs in nothing, got {first!r} in {path}.")
    return variations


def draw_sweep(report: Mapping[str, Any], settings: Mapping[str, Any]) -> Image.Image:
    """Draw the gain in foreground PSNR over each numeric option that was varied alone."""
    points = {}
    for variation in report.values():
        for option, value in variation["differs_in"].items() if len(variation["differs_in"]) == 1 else ():
            if not isinstance(value, (bool, str)):
                points.setdefault(option, {})[value] = variation["gains"]
    base = next(v["gains"] for v in report.values() if not v["differs_in"])
    charts = []
    for option, gains in points.items():
        gains = sorted((gains | {settings[option]: base}).items())
        curves = {name: [(value, by[metric]["mean"]) for value, by in gains] for name, metric in CURVES.items()}
        charts.append(line_chart(curves, f"{option}: gain in foreground PSNR, dB"))
    return picture_grid([charts[i : i + 2] for i in range(0, len(charts), 2)])


def main(options: argparse.Namespace) -> dict:
    """Run the missing trials, print the table, write it with the figures and curves, and return the figures."""
    variations = options.finetune
    trials = {name: plan_trials(options, groups, [options.num_photos]) for name, (_, groups) in variations.items()}
    by_subject = [trial for same_subject in zip(*trials.values(), strict=True) for trial in same_subject]
    run_all(by_subject, options.work_dir, options.num_processes)
    rows = {name: summarize(run_all(own, options.work_dir, 1))[-1] for name, own in trials.items()}
    first = next(iter(rows))
    names = ("model", "split", "num_subjects", "first_subject", "num_inference_steps", "num_photos")
    settings = {name: getattr(options, name) for name in names} | {"digest": by_subject[0].digest}
    settings["finetune"] = taken_options(variations[first][1])
    report = {
        name: {"differs_in": variations[name][0]} | compare_with_first(row, rows[first]) for name, row in rows.items()
    }
    write_json(options.output, {"settings": settings, "variations": report})
    table = format_sweep(report)
    options.output.with_suffix(".md").write_text(table)
    draw_sweep(report, option_values(*variations[first][1])).save(options.output.with_suffix(".png"), optimize=True)
    print(table)
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
