# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What stage 2 gives: drawn subjects that stage 1 never saw, learnt from one photo and from four, measured on poses
that no photo shows.

    python -m benchmarks.subjects --output results.json [options of this script] -- [options of training/finetune.py]

Every trial is kept in the folder `--work_dir`, so that a stopped run is simply started again.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.subject_report import print_report, run_all, summarize
from benchmarks.subject_trials import Trial
from training import subject_options as groups
from training.animation import model_digest
from training.hub import load_pipeline
from training.option_parsing import option_values, parse


OPTIONS = (
    *(groups.SubjectOptions, groups.LoraOptions, groups.DecoderOptions, groups.SubjectObjectiveOptions),
    groups.SubjectTrainOptions,
)
POSE_RADIUS = 2


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="of the drawn subjects")
    parser.add_argument("--num_subjects", type=int, default=20)
    parser.add_argument("--num_photos", type=int, nargs="+", choices=range(1, 5), default=[1, 4])
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--curve_steps", type=int, help="measure every so many steps too; by default at ends only")
    parser.add_argument("--num_processes", type=int, default=os.cpu_count(), help="trials at a time, one thread each")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/subjects"))
    parser.add_argument("--output", type=Path, help="JSON")
    argv = sys.argv[1:] if argv is None else argv
    place = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:place])
    options.finetune = parse(OPTIONS, argv[place + 1 :])
    return options


def plan_trials(options: argparse.Namespace) -> list[Trial]:
    """All trials, those of one subject one after another."""
    subject, lora, decoder, objective, run = options.finetune
    digest, trials = model_digest(load_pipeline(options.model)), []
    for index in range(options.num_subjects):
        for num_photos in options.num_photos:
            common = run.loop_arguments(num_photos) | {"checkpointing_steps": None}
            common |= {"validation_steps": options.curve_steps or 10**9}
            phases = {"denoiser": common, "decoder": common | decoder.loop_arguments()}
            settings = vars(subject.settings(POSE_RADIUS, objective.noise_offset))
            trials.append(
                Trial(
                    model=options.model,
                    digest=digest,
                    split=options.split,
                    index=index,
                    num_photos=num_photos,
                    pairs=settings,
                    prior=(subject.prior_dataset, subject.prior_prob),
                    lora=lora.config_arguments() if lora.train_mode == "lora" else None,
                    phases={phase: values for phase, values in phases.items() if values["max_train_steps"]},
                    loss=objective.loss_arguments(),
                    num_cached_crops=subject.num_cached_crops,
                    num_inference_steps=options.num_inference_steps,
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
            "finetune": option_values(*options.finetune),
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
        options.output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"subjects.py: error: {error}") from None
