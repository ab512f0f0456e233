# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Settings of stage 2 varied one by one, on drawn validation subjects. Every trial is kept in `--work_dir`, as
`benchmarks.subjects.gains` keeps its own. Without the decoder's phase, unless a variation asks for it.

    python -m benchmarks.subjects.sweep [options of this script] -- [options of training/finetune.py]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.subjects.planning import parse_stage_two, plan_trials, split_words, taken_options
from benchmarks.subjects.report import compare_with_first, draw_sweep, format_sweep, run_all, summarize
from benchmarks.subjects.trials import add_subject_options
from training.media.settings_file import write_json
from training.options.parsing import option_values
from training.options.subject import METHOD_OPTIONS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_subject_options(parser, Path("runs/subjects"))
    add = parser.add_argument
    add("--num_photos", type=int, choices=range(1, 5), default=1)
    add("--variations", type=Path, default=Path(__file__).with_suffix(".yaml"), help="YAML: name to what differs")
    parser.set_defaults(split="validation", num_subjects=8, output=Path(__file__).with_suffix(".json"))
    words, finetune = split_words(argv)
    options = parser.parse_args(words)
    if options.num_subjects < 2:
        raise ValueError(
            f"`num_subjects` must be 2 or more, of which a standard error can be taken, got {options.num_subjects}."
        )
    options.finetune = read_variations(options.variations, finetune)
    return options


def read_variations(path: Path, finetune: Sequence[str]) -> dict[str, tuple[dict[str, Any], tuple]]:
    """By name: the options in which a variation differs from those of the command line, and all its options.

    Raises:
        ValueError: If the first variation, which the others are compared with, differs in anything.
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


def main(options: argparse.Namespace) -> dict:
    """Run what is missing, print the gains as a table and write it with the figures and curves beside `--output`."""
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
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"subject_sweep.py: error: {error}") from None
