# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Trials of many subjects: planned from options, run in parallel and kept, and summarised over subjects."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.kept_jobs import kept_path, run_missing
from benchmarks.scripts import format_mean
from benchmarks.subjects.trials import RECORDS_VERSION, Trial, numbers_of_subjects, run_trial
from training.hub.repositories import load_pipeline
from training.media.animation import model_digest
from training.metrics.frames import mean_and_standard_error
from training.options.parsing import option_values, parse
from training.subject.phases import trained_phases


# Options of finetune.py that trials refuse: they have models, data and folders of their own, run in float32 on the
# CPU, and write no checkpoints.
NOT_TAKEN = (
    *("pretrained_model_name_or_path", "revision", "instance_data_dir", "densepose", "person", "height", "width"),
    *("quantize_base", "output_dir", "resume_from_checkpoint", "checkpointing_steps", "report_to"),
    *("mixed_precision", "allow_tf32", "channels_last", "checkpoints_total_limit", "gradient_checkpointing"),
)
METRICS = ("psnr", "ssim", "l1", "foreground_psnr", "silhouette_iou", "cloth_psnr")
GROUPS = ("all", "back", "still_window", "photos", "vae_round_trip")
COMPARED = {  # figures of a sweep: name -> group and metric
    "psnr": ("all", "psnr"),
    "ssim": ("all", "ssim"),
    "foreground_psnr": ("all", "foreground_psnr"),
    "back_foreground_psnr": ("back", "foreground_psnr"),
    "own_pose_foreground_psnr": ("photos", "foreground_psnr"),
    "vae_round_trip_psnr": ("vae_round_trip", "psnr"),
}


def split_words(argv: Sequence[str] | None) -> tuple[Sequence[str], Sequence[str]]:
    """Split a command line (`sys.argv[1:]` if `None`) into the words before `--` and the words after it."""
    argv = sys.argv[1:] if argv is None else argv
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


def parse_stage_two(kinds: Sequence[type], argv: Sequence[str]) -> tuple:
    """Parse the options of training/finetune.py into instances of `kinds`, `training.options.subject.METHOD_OPTIONS`.

    Raises:
        ValueError: If the command line sets an option that trials refuse, or nothing would train.
    """
    groups = parse(kinds, argv, presets="finetune")
    values, defaults = option_values(*groups), option_values(*(kind() for kind in kinds))
    for name in NOT_TAKEN:
        if values[name] != defaults[name]:
            raise ValueError(f"`{name}` must be left as it is, since trials do not take it, got {values[name]!r}.")
    trained_phases(values["max_train_steps"], values["decoder_max_train_steps"])
    return groups


def taken_options(groups: tuple) -> dict[str, Any]:
    """Return the options that trials use, by name."""
    return {name: value for name, value in option_values(*groups).items() if name not in NOT_TAKEN}


def plan_trials(
    options: argparse.Namespace,
    groups: tuple,
    num_photos: Sequence[int],
    num_clips: int = 0,
    curve_steps: int | None = None,
) -> list[Trial]:
    """Return all trials of the subjects and numbers of photos, grouped by subject.

    `options` are those of `add_subject_options`, and `groups` the result of `parse_stage_two`. A trial is measured at
    the end of each phase, and also after every `curve_steps` steps if given.
    """
    subject, lora, decoder, objective, run = groups
    pipeline, trials = load_pipeline(options.model), []
    digest = model_digest(pipeline)
    for index in numbers_of_subjects(options):
        for number in num_photos:
            common = run.loop_arguments(number) | {"checkpointing_steps": None}
            common |= {"validation_steps": curve_steps or 10**9}
            phases = {"denoiser": common, "decoder": common | decoder.loop_arguments()}
            trained = trained_phases(*(values["max_train_steps"] for values in phases.values()))
            trials.append(
                Trial(
                    model=options.model,
                    digest=digest,
                    split=options.split,
                    index=index,
                    num_photos=number,
                    pairs=vars(subject.settings(pipeline.pose_radius, objective.noise_offset)),
                    prior=(subject.prior_dataset, subject.prior_prob, subject.num_textured_clips),
                    lora=lora.config_arguments() if lora.train_mode == "lora" else None,
                    phases={phase: phases[phase] for phase in trained},
                    loss=objective.loss_arguments(),
                    num_cached_crops=subject.num_cached_crops,
                    num_inference_steps=options.num_inference_steps,
                    num_clips=num_clips,
                )
            )
    return trials


def trial_path(trial: Trial, work_dir: Path) -> Path:
    """Return the file of a trial's records. Other settings, weights or drawings give another name."""
    return kept_path(work_dir, f"{trial.split}-{trial.index:03d}", [RECORDS_VERSION, asdict(trial)])


def _run(trial: Trial) -> dict[str, Any]:
    return {"trial": asdict(trial), "records": run_trial(trial)}


def run_all(trials: Sequence[Trial], work_dir: Path, num_processes: int) -> list[list[dict]]:
    """Run the trials that have no file in `work_dir`, and return the records of all trials in their order."""
    jobs = {trial_path(trial, work_dir): (trial,) for trial in trials}
    kept = dict(zip(jobs, run_missing(_run, jobs, num_processes)))
    return [kept[trial_path(trial, work_dir)]["records"] for trial in trials]  # equal trials share one file


def summarize(results: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict]:
    """Summarise the records of `run_trial` over subjects, with one row per phase and step.

    By group and metric, a row holds `figures` and `gains` over the untrained model (mean, standard error and number),
    `improved` (number of subjects that gained) and `gain_by_subject`.
    """
    rows = []
    for records in zip(*results, strict=True):
        row = {"phase": records[0]["phase"], "step": records[0]["step"]}
        for name in ("figures", "gains", "improved", "gain_by_subject"):
            row[name] = {}
        for group in GROUPS:
            values = {m: _values(records, group, m) for m in METRICS}
            before = {m: _values([result[0] for result in results], group, m) for m in METRICS}
            gains = {m: values[m] - before[m] for m in METRICS}
            row["figures"][group] = {m: mean_and_standard_error(v) for m, v in values.items()}
            row["gains"][group] = {m: mean_and_standard_error(v) for m, v in gains.items()}
            better = {m: -v if m == "l1" else v for m, v in gains.items()}
            row["improved"][group] = {m: int((v > 0).sum()) for m, v in better.items()}
            row["gain_by_subject"][group] = {m: [round(x, 4) for x in v.tolist()] for m, v in gains.items()}
        rows.append(row)
    return rows


def _values(records: Sequence[Mapping[str, Any]], group: str, metric: str) -> torch.Tensor:
    return torch.tensor([record["figures"][group][metric] for record in records], dtype=torch.float64)


def compare_with_first(row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Compare a variation with the first one, subject by subject; both are rows of `summarize`.

    Returns its `gains`, `num_improved_ssim` (number of subjects whose SSIM gained), and `beyond_the_first`, its gains
    minus those of the first variation.
    """
    beyond = {}
    for name, (group, metric) in COMPARED.items():
        own, others = (torch.tensor(r["gain_by_subject"][group][metric], dtype=torch.float64) for r in (row, first))
        beyond[name] = mean_and_standard_error(own - others)
    return {
        "gains": {name: row["gains"][group][metric] for name, (group, metric) in COMPARED.items()},
        "num_improved_ssim": row["improved"]["all"]["ssim"],
        "beyond_the_first": beyond,
    }


def format_sweep(report: Mapping[str, Any]) -> str:
    """Format the gains of all variations as a Markdown table, mean ± standard error over subjects."""
    titles = [*(name.replace("_", " ") for name in COMPARED), "foreground psnr beyond the first row's"]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, variation in report.items():
        cells = [format_mean(value, 3 if column == "ssim" else 2) for column, value in variation["gains"].items()]
        cells.append(format_mean(variation["beyond_the_first"]["foreground_psnr"], 2))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
