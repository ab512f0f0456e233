# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of training/finetune.py as trials of stage 2, one for each drawn subject and number of photos."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.subjects.trials import Trial, numbers_of_subjects
from training.hub.repositories import load_pipeline
from training.media.animation import model_digest
from training.options.parsing import option_values, parse
from training.subject.phases import trained_phases


# Of finetune.py's options: a trial has its own of the first, runs in float32 on the CPU, and keeps no checkpoint.
NOT_TAKEN = (
    *("pretrained_model_name_or_path", "revision", "instance_data_dir", "densepose", "person", "height", "width"),
    *("quantize_base", "output_dir", "resume_from_checkpoint", "validation_steps", "checkpointing_steps", "report_to"),
    *("mixed_precision", "allow_tf32", "channels_last", "checkpoints_total_limit", "gradient_checkpointing"),
)


def split_words(argv: Sequence[str] | None) -> tuple[Sequence[str], Sequence[str]]:
    """A command line, `sys.argv`'s if `None`, in two: what stands before `--`, and what behind it."""
    argv = sys.argv[1:] if argv is None else argv
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


def parse_stage_two(kinds: Sequence[type], argv: Sequence[str]) -> tuple:
    """Options of stage 2 from a command line, as `training.options.parsing.parse` gives them.

    Args:
        kinds (`Sequence[type]`): `training.options.subject.METHOD_OPTIONS`.
        argv (`Sequence[str]`): Of training/finetune.py.
    Raises:
        ValueError: If one is given that trials do not take, or nothing would train.
    """
    groups = parse(kinds, argv, presets="finetune")
    values, defaults = option_values(*groups), option_values(*(kind() for kind in kinds))
    for name in NOT_TAKEN:
        if values[name] != defaults[name]:
            raise ValueError(f"`{name}` must be left as it is, since trials do not take it, got {values[name]!r}.")
    trained_phases(values["max_train_steps"], values["decoder_max_train_steps"])
    return groups


def taken_options(groups: tuple) -> dict[str, Any]:
    """What decides a trial, by name."""
    return {name: value for name, value in option_values(*groups).items() if name not in NOT_TAKEN}


def plan_trials(
    options: argparse.Namespace,
    groups: tuple,
    num_photos: Sequence[int],
    num_clips: int = 0,
    curve_steps: int | None = None,
) -> list[Trial]:
    """All trials, those of one subject one after another.

    Args:
        options (`argparse.Namespace`): With those of `add_subject_options`.
        groups (`tuple`): From [`parse_stage_two`].
        num_photos (`Sequence[int]`): Numbers of photos to learn each subject from.
        num_clips (`int`, *optional*, defaults to 0): As a [`Trial`] takes it.
        curve_steps (`int`, *optional*): Measure every so many steps of each phase too, not at its end alone.
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
                    prior=(subject.prior_dataset, subject.prior_prob),
                    lora=lora.config_arguments() if lora.train_mode == "lora" else None,
                    phases={phase: phases[phase] for phase in trained},
                    loss=objective.loss_arguments(),
                    num_cached_crops=subject.num_cached_crops,
                    num_inference_steps=options.num_inference_steps,
                    num_clips=num_clips,
                )
            )
    return trials
