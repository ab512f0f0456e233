# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stage 1 of DreamPose: train UNet and adapter on a fashion data set (arXiv:2304.06025).

python training/train.py --preset paper --train_data FOLDER --output_dir OUTPUT
accelerate launch --multi_gpu --num_processes 4 training/train.py ...    # on 4 GPUs
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.options.command import CHECKPOINTS_KEPT, run_command
from training.options.parsing import format_options, option_values, parse, save_options
from training.options.run import HubOptions, TrainOptions
from training.options.stage_one import DataOptions, ModelOptions, ObjectiveOptions, PairOptions, ValidationOptions


if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline_dreampose import DreamPosePipeline

OPTIONS = (ModelOptions, DataOptions, PairOptions, ObjectiveOptions, TrainOptions, ValidationOptions, HubOptions)
MOST_USED = (
    *("pretrained_model_name_or_path", "train_data", "output_dir", "max_train_steps", "train_batch_size"),
    *("learning_rate", "mixed_precision", "latent_cache_dir", "resume_from_checkpoint", "push_to_hub"),
)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """Return the option groups of a command line, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__, first=MOST_USED)


def fit(accelerator: "Accelerator", pipeline: "DreamPosePipeline", options: tuple) -> int:
    """Train the pipeline's UNet and adapter in place; return the number of steps."""
    import torch

    from training.data.frame_pairs import LatentShape
    from training.data.samples import open_training
    from training.engine.loop import train
    from training.engine.precision import held_in, weight_dtype
    from training.metrics.validation import open_validation
    from training.models.denoiser import StageOneLoss, build_denoiser
    from training.models.objective import build_noise_scheduler

    model, data, pairs, objective, run, held_out, _ = options
    scheduler = build_noise_scheduler(pipeline.scheduler.config, objective.snr_gamma)
    how = (model.gradient_checkpointing, run.channels_last, model.torch_compile_backend)
    module = build_denoiser(pipeline, model.train_image_encoder, model.train_adapter, *how)
    shape = LatentShape.of(pipeline.vae, data.height, data.width)
    frozen = [pipeline.vae] if model.train_image_encoder else [pipeline.vae, pipeline.image_encoder]
    with held_in(weight_dtype(accelerator), frozen):
        source = (data.train_data, shape, run.seed, pairs.settings(objective.noise_offset))
        validate, every = None, held_out.validation_steps
        if every is not None:
            place = (run.output_dir, source, pairs.streaming)
            validate = open_validation(pipeline, accelerator, *place, **held_out.sizes())
        storage = (pairs.streaming, pairs.latent_cache_dir, model.train_image_encoder)
        samples = open_training(accelerator, pipeline, source, *storage)
        loss_fn = StageOneLoss(pipeline, scheduler, shape, **objective.loss_arguments())
        arguments = run.loop_arguments(None if pairs.streaming else len(samples), accelerator.num_processes)
        train(accelerator, module, loss_fn, samples, validate=validate, validation_steps=every, **arguments)
    module.to(memory_format=torch.contiguous_format)
    return arguments["max_train_steps"]


def main(options: tuple) -> None:
    """Load and widen the model, train it, write a pipeline folder to `output_dir`, and push it if asked to."""
    from training.engine.checkpoints import starting_state
    from training.engine.errors import naming_data_set
    from training.engine.session import open_session
    from training.hub.card_writer import try_write_card, write_run_card
    from training.hub.repositories import try_make_repo, try_push
    from training.media.pictures import spare_inputs
    from training.models.base_pipeline import load_base_pipeline
    from training.models.run_costs import describe_run

    model, data, pairs, _, run, held_out, hub = options
    run.loop_arguments(None if pairs.streaming else 1)  # refuses a stream without a number of steps
    if model.dry_run:
        known = (data.train_data, run.loop_arguments, (data.height, data.width), pairs.latent_cache_dir is not None)
        known += (model.gradient_checkpointing, held_out.validation_steps is not None and run.max_train_steps != 0)
        print(*describe_run(model.pretrained_model_name_or_path, *known), sep="\n")
        return
    spare_inputs("output_dir", [run.output_dir], [model.pretrained_model_name_or_path, data.train_data])
    start = starting_state(run.output_dir, run.resume_from_checkpoint, run.max_train_steps)["global_step"]
    with open_session(settings=option_values(*options), first_step=start, **run.session_arguments()) as accelerator:
        source = (model.pretrained_model_name_or_path, data.height, data.width, pairs.pose_radius, model.revision)
        pipeline = load_base_pipeline(*source, model.image_encoder_name_or_path).to(accelerator.device)
        is_main, repo_id = accelerator.is_main_process, hub.hub_model_id
        if is_main:
            print(save_options(run.output_dir, *options).read_text())
            repo_id = try_make_repo(repo_id, hub.hub_private_repo) or repo_id if hub.push_to_hub else repo_id
        with naming_data_set("train_data"):
            num_steps = fit(accelerator, pipeline, options) if run.max_train_steps != 0 else 0
        if not is_main:
            return
        pipeline.save_pretrained(run.output_dir)
        print(f"Wrote the pipeline to {run.output_dir}.")
        card = {"dataset": data.train_data, "license": hub.hub_license, "picture": hub.hub_picture}
        card |= {"base_model": model.pretrained_model_name_or_path, "revision": model.revision, "num_steps": num_steps}
        card |= {"num_samples": run.global_batch_size(accelerator.num_processes), "parts": model.trained_parts()}
        try_write_card(write_run_card, run.output_dir, repo_id, options_yaml=format_options(*options), **card)
        if hub.push_to_hub:
            try_push(run.output_dir, repo_id, private=hub.hub_private_repo)


if __name__ == "__main__":
    run_command(parse_args, main, CHECKPOINTS_KEPT)
