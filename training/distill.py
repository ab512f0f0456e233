# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Distil a DreamPose pipeline to few steps: one forward pass a frame instead of many (arXiv:2310.04378).

python training/distill.py --pretrained_model_name_or_path MODEL --train_data FOLDER --output_dir OUTPUT
accelerate launch --multi_gpu --num_processes 4 training/distill.py ...    # on 4 GPUs
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.options import few_steps as groups
from training.options.command import CHECKPOINTS_KEPT, run_command
from training.options.parsing import format_options, option_values, parse, save_options
from training.options.run import HubOptions
from training.options.stage_one import HeldOutOptions, PairOptions


if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline_dreampose import DreamPosePipeline

OPTIONS = (*groups.METHOD_OPTIONS, PairOptions, HeldOutOptions, HubOptions)
VALIDATED_STEPS = (1, 2, 4)  # validation samples with each of these numbers of steps
MOST_USED = (
    *("pretrained_model_name_or_path", "train_data", "output_dir", "max_train_steps", "train_batch_size"),
    *("learning_rate", "rank", "train_mode", "resume_from_checkpoint", "push_to_hub"),
)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """Return the option groups of a command line, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__, presets="distill", first=MOST_USED)


def fit(accelerator: "Accelerator", pipeline: "DreamPosePipeline", teacher: Any, module: Any, options: tuple) -> tuple:
    """Train the student, `module`; return its LoRA as arguments of `save_lora_weights`, and the number of steps.

    After full training, the LoRA is `{}`, and the pipeline has the new weights. The pipeline must have the student's
    scheduler and defaults already.
    """
    import torch

    from training.data.frame_pairs import LatentShape
    from training.data.samples import open_training
    from training.engine.loop import train
    from training.engine.precision import weight_dtype
    from training.metrics.validation import open_validation
    from training.models import distillation, lora

    _, student, consistency, data, run, pairs, held_out, _ = options
    parts = {"unet": pipeline.unet, "adapter": pipeline.adapter}
    is_lora = student.train_mode == "lora"
    configs = distillation.few_step_lora_configs(student.rank, student.lora_alpha) if is_lora else None
    shape = LatentShape.of(pipeline.vae, pipeline.config.default_height, pipeline.config.default_width)
    with lora.made_trainable(pipeline, parts, configs, weight_dtype(accelerator), run.seed):
        source = (data.train_data, shape, run.seed, pairs.settings())
        validate, every = None, held_out.validation_steps
        if every is not None:
            numbers = [number for number in VALIDATED_STEPS if number <= consistency.num_ddim_timesteps]
            sizes = held_out.sizes() | {"validation_inference_steps": numbers}
            validate = open_validation(pipeline, accelerator, run.output_dir, source, pairs.streaming, **sizes)
        samples = open_training(accelerator, pipeline, source, pairs.streaming, pairs.latent_cache_dir)
        loss_fn = distillation.ConsistencyLoss(pipeline, shape, teacher, **consistency.loss_arguments())
        arguments = run.loop_arguments(None if pairs.streaming else len(samples), accelerator.num_processes)
        train(accelerator, module, loss_fn, samples, validate=validate, validation_steps=every, **arguments)
        layers = lora.collect_lora(parts) if is_lora else {}
    module.to(memory_format=torch.contiguous_format)
    return layers, arguments["max_train_steps"]


def main(options: tuple) -> None:
    """Load the teacher, train the student, write it to `output_dir`, and push it if asked to."""
    from training.engine.checkpoints import starting_state
    from training.engine.errors import naming_data_set
    from training.engine.session import open_session
    from training.hub.repositories import find_commit, try_make_repo, try_push
    from training.media.pictures import spare_inputs
    from training.models import distillation
    from training.models.base_pipeline import load_subject_base
    from training.models.denoiser import build_denoiser

    teacher, student, consistency, data, run, pairs, _, hub = options
    name, is_lora = teacher.named(), student.train_mode == "lora"
    run.loop_arguments(None if pairs.streaming else 1)  # refuses a stream without a number of steps
    distillation.check_steps(student.num_inference_steps, consistency.num_ddim_timesteps)
    spare_inputs("output_dir", [run.output_dir], [name, data.train_data])
    start = starting_state(run.output_dir, run.resume_from_checkpoint, run.max_train_steps)["global_step"]
    with open_session(settings=option_values(*options), first_step=start, **run.session_arguments()) as accelerator:
        is_main = accelerator.is_main_process
        pipeline = load_subject_base(name, teacher.revision, data.height, data.width).to(accelerator.device)
        commit = find_commit(name, teacher.revision)  # before another process may fetch a newer one
        distillation.check_pose_radius(pipeline, pairs.pose_radius)
        steps = (consistency.num_ddim_timesteps, student.num_inference_steps)
        settings = distillation.few_step_settings(pipeline, *steps)
        if is_main:
            print(f"All options are in {save_options(run.output_dir, *options)}.")
        repo_id = try_make_repo(hub.hub_model_id, hub.hub_private_repo) if hub.push_to_hub and is_main else None
        how = {"gradient_checkpointing": teacher.gradient_checkpointing, "channels_last": run.channels_last}
        module = build_denoiser(pipeline, **how)
        guide = distillation.Teacher(accelerator, pipeline, **teacher.scales(), is_lora=is_lora)
        distillation.set_few_steps(pipeline, settings)
        with naming_data_set("train_data"):
            layers, num_steps = fit(accelerator, pipeline, guide, module, options)
        if not is_main:
            return
        facts = {"base_model": name, "revision": commit, "rank": student.rank, "num_steps": num_steps}
        facts |= {"repo_id": repo_id or hub.hub_model_id, "dataset": data.train_data, "license": hub.hub_license}
        facts |= {"picture": hub.hub_picture, "options_yaml": format_options(*options)}
        facts |= {"num_samples": run.global_batch_size(accelerator.num_processes)}
        distillation.write_student(Path(run.output_dir), pipeline, layers, settings, guide, **facts)
        if hub.push_to_hub:
            how = {"private": hub.hub_private_repo, "commit_message": "Upload a DreamPose that samples in few steps"}
            try_push(Path(run.output_dir), facts["repo_id"], **how)


if __name__ == "__main__":
    run_command(parse_args, main, CHECKPOINTS_KEPT)
