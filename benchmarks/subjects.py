# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What stage 2 gives: drawn subjects that stage 1 never saw, learnt from one photo and from four, measured on poses
that no photo shows. Every trial is kept in `--work_dir`: a stopped run is simply started again.

    python -m benchmarks.subjects --output results.json [options of this script] -- [options of training/finetune.py]
"""

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.subject_report import print_report, run_all, summarize, write_report
from benchmarks.subject_trials import Trial, add_subject_options, numbers_of_subjects
from training import subject_options as groups
from training.animation import model_digest
from training.hub import load_pipeline
from training.option_parsing import option_values, parse


STAGE_TWO = (groups.SubjectOptions, groups.LoraOptions, groups.DecoderOptions)
OPTIONS = (*STAGE_TWO, groups.SubjectObjectiveOptions, groups.SubjectTrainOptions)
# Of finetune.py's options: a trial has its own of the first, runs in float32 on the CPU, and keeps no checkpoint.
NOT_TAKEN = (
    *("pretrained_model_name_or_path", "revision", "instance_data_dir", "densepose", "person", "height", "width"),
    *("quantize_base", "output_dir", "resume_from_checkpoint", "validation_steps", "checkpointing_steps", "report_to"),
    *("mixed_precision", "allow_tf32", "channels_last", "checkpoints_total_limit", "gradient_checkpointing"),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_subject_options(parser, Path("runs/subjects"))
    parser.add_argument("--num_photos", type=int, nargs="+", choices=range(1, 5), default=[1, 4])
    parser.add_argument("--num_clips", type=int, default=0, help="learn from so many clips of other motions, no photo")
    parser.add_argument("--curve_steps", type=int, help="measure every so many steps too, and draw it beside the JSON")
    argv = sys.argv[1:] if argv is None else argv
    place = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:place])
    options.finetune = parse(OPTIONS, argv[place + 1 :], presets="finetune")
    values, defaults = option_values(*options.finetune), option_values(*(kind() for kind in OPTIONS))
    for name in NOT_TAKEN:
        if values[name] != defaults[name]:
            raise ValueError(f"`{name}` must be left as it is, since trials do not take it, got {values[name]!r}.")
    if options.num_clips and (len(options.num_photos), values["num_cached_crops"]) != (1, 0):
        got = f"{options.num_clips}, {options.num_photos} and {values['num_cached_crops']}"
        raise ValueError(f"`num_clips` must be 0, or `num_photos` one number and `num_cached_crops` 0, got {got}.")
    if not values["max_train_steps"] and not values["decoder_max_train_steps"]:
        raise ValueError("`max_train_steps` and `decoder_max_train_steps` must not both be 0, which trains nothing.")
    return options


def plan_trials(options: argparse.Namespace) -> list[Trial]:
    """All trials, those of one subject one after another."""
    subject, lora, decoder, objective, run = options.finetune
    pipeline, trials = load_pipeline(options.model), []
    digest = model_digest(pipeline)
    for index in numbers_of_subjects(options):
        for num_photos in options.num_photos:
            common = run.loop_arguments(num_photos) | {"checkpointing_steps": None}
            common |= {"validation_steps": options.curve_steps or 10**9}
            phases = {"denoiser": common, "decoder": common | decoder.loop_arguments()}
            trials.append(
                Trial(
                    model=options.model,
                    digest=digest,
                    split=options.split,
                    index=index,
                    num_photos=num_photos,
                    pairs=vars(subject.settings(pipeline.pose_radius, objective.noise_offset)),
                    prior=(subject.prior_dataset, subject.prior_prob),
                    lora=lora.config_arguments() if lora.train_mode == "lora" else None,
                    phases={phase: values for phase, values in phases.items() if values["max_train_steps"]},
                    loss=objective.loss_arguments(),
                    num_cached_crops=subject.num_cached_crops,
                    num_inference_steps=options.num_inference_steps,
                    num_clips=options.num_clips,
                )
            )
    return trials


def main(options: argparse.Namespace) -> dict:
    """Run what is missing, print the figures and write them, which are returned."""
    trials = plan_trials(options)
    results = run_all(trials, options.work_dir, options.num_processes)
    report = {
        "settings": {
            **{name: str(v) for name, v in vars(options).items() if name not in ("finetune", "output", "work_dir")},
            "finetune": {n: v for n, v in option_values(*options.finetune).items() if n not in NOT_TAKEN},
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
        write_report(options.output, report)
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"subjects.py: error: {error}") from None
