# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Repeat the paper's ablations (arXiv:2304.06025) at a size that anyone can run.

Each arm and seed trains a short stage 1 and is measured on held-out clips. The figures of stage 2 come from
`benchmarks.subjects.gains`. A stopped run resumes when it is started again.

    python -m benchmarks.claims.ablation
"""

import argparse
import json
import os
from pathlib import Path

from benchmarks.claims.ablation_arms import ARMS, SCALES, Held, arm_settings, compare_noise, draw_data, run_arm
from benchmarks.claims.ablation_report import format_table, judge, values_of, values_of_subjects
from benchmarks.kept_jobs import run_missing
from benchmarks.scripts import count, package_versions, parse_benchmark, run_script
from training.hub.repositories import load_pipeline
from training.media.animation import model_digest
from training.media.settings_file import has_settings, write_json
from training.options.command import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline that gives the encoders; noise is compared on it")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="changes to the method to train; all by default")
    add("--seeds", nargs="+", type=int, default=[0, 1], help="seeds to train each arm with")
    add("--num_train", type=count, default=1000, help="drawn clips for training")
    add("--max_train_steps", type=count, help="optimizer steps of each training (default: that of ablation.yaml)")
    add("--num_clips", type=count, default=20, help="held-out clips to measure")
    add("--frames_per_clip", type=count, default=3, help="target frames per clip")
    add("--num_consecutive", type=count, default=4, help="consecutive frames per clip")
    add("--num_inference_steps", type=count, default=15, help="denoising steps per frame")
    subjects = Path(__file__).parents[1] / "subjects" / "gains.json"
    add(
        "--subjects",
        type=Path,
        default=subjects,
        help="report of stage 2 (default: the project's, gains.json)",
    )
    add("--num_processes", type=count, default=os.cpu_count(), help="arms that run at the same time, one thread each")
    add(
        "--work_dir",
        type=Path,
        default=Path("runs/ablation"),
        help="folder that keeps data and finished arms",
    )
    return parse_benchmark(parser, argv, "benchmarks/claims/ablation.json", ", with the table next to it")


def run_arms(options: argparse.Namespace, held: Held) -> dict[tuple[str, int], dict]:
    """Run the missing arms and return all results by arm and seed."""
    schedule = {} if options.max_train_steps is None else {"max_train_steps": options.max_train_steps}
    work_dir, keys = options.work_dir, [(arm, seed) for seed in options.seeds for arm in options.arms]
    draw_data(options.model, work_dir, options.num_train)
    jobs = {
        work_dir / f"{arm}-{seed}.json": (options.model, arm, seed, str(work_dir), schedule, held)
        for arm, seed in keys
    }
    return dict(zip(keys, run_missing(run_arm, jobs, options.num_processes, "arm"), strict=True))


def main(options: argparse.Namespace) -> dict:
    """Run what is missing, print the table, write the report and return it."""
    names = ("num_clips", "frames_per_clip", "num_consecutive", "num_inference_steps")
    settings = {name: getattr(options, name) for name in (*names, "num_train", "max_train_steps")}
    model = load_pipeline(options.model, "cpu")
    settings |= arm_settings(model)
    if not has_settings(options.work_dir / "settings.json", settings, "work_dir"):
        write_json(options.work_dir / "settings.json", settings)
    held = Held(**{name: getattr(options, name) for name in names})
    arms = run_arms(options, held)
    # The arms depend on the model's encoders alone, but this comparison depends on the whole model.
    digest = model_digest(model)
    noise = {options.work_dir / f"noise-{digest}.json": (options.model, held)}
    (compared,) = run_missing(compare_noise, noise, 1, "comparison")
    sides = {("noise", name): [values_of(clips)] for name, clips in compared.items()}
    for (arm, _), result in arms.items():
        for name in SCALES:
            sides.setdefault((arm, name), []).append(values_of(result[name]))
    if options.subjects.exists():
        sides |= values_of_subjects(json.loads(options.subjects.read_text()))
    report = {
        "settings": settings | {"seeds": options.seeds, "model": options.model, "digest": digest},
        "versions": package_versions("torch", "diffusers"),
        "training_cpu_seconds": {f"{arm}, seed {s}": r["training_cpu_seconds"] for (arm, s), r in arms.items()},
        "claims": judge(sides),
        "figures": {", ".join(side): values for side, values in sides.items()},
    }
    write_json(options.output, report)
    table = format_table(report["claims"])
    options.output.with_suffix(".md").write_text(table)
    print(table, f"Wrote {options.output} and .md.", sep="\n")
    return report


if __name__ == "__main__":
    run_script(main, parse_args, (ValueError, RuntimeError))
