# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stage 1 of DreamPose: UNet and adapter on a fashion data set (arXiv:2304.06025).

accelerate launch training/train.py --preset paper --train_data FOLDER --output_dir OUTPUT
"""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import LatentShape
from training.data.pair_settings import PairSettings
from training.data.samples import cache_samples, open_held_out, open_samples, open_stream
from training.engine.checkpoints import starting_step
from training.engine.loop import train
from training.engine.precision import held_in, weight_dtype
from training.engine.session import open_session
from training.hub.model_card import describe_run
from training.hub.repositories import try_make_repo, try_push
from training.media.pictures import spare_inputs
from training.metrics.validation import build_validation
from training.models.base_pipeline import load_base_pipeline
from training.models.denoiser import Denoiser, StageOneLoss
from training.options import run as groups
from training.options.parsing import format_options, option_values, parse, save_options


OPTIONS = (
    *(groups.ModelOptions, groups.DataOptions, groups.PairOptions, groups.ObjectiveOptions),
    *(groups.TrainOptions, groups.ValidationOptions, groups.HubOptions),
)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """The option groups, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__)


def fit(accelerator: Accelerator, pipeline: DreamPosePipeline, options: tuple) -> int:
    """Train the pipeline's UNet and adapter in place; returns the number of steps."""
    model, data, pairs, objective, run, held_out, _ = options
    trains = {"train_image_encoder": model.train_image_encoder, "train_adapter": model.train_adapter}
    module = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder, **trains)
    pipeline.vae.requires_grad_(False)
    if model.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    if run.channels_last:
        module.to(memory_format=torch.channels_last)
    if model.torch_compile_backend is not None:
        pipeline.unet.compile(backend=model.torch_compile_backend)
    shape = LatentShape.of(pipeline.vae, data.height, data.width)
    frozen = [pipeline.vae] if model.train_image_encoder else [pipeline.vae, pipeline.image_encoder]
    with held_in(weight_dtype(accelerator), frozen):
        validate = None
        if run.validation_steps is not None and accelerator.is_main_process:
            # Whole pictures, as the pipeline takes them, whatever training shows.
            whole = PairSettings(pairs.pose_radius, bad_rows=pairs.bad_rows)
            num_pairs = held_out.num_validation_pairs
            clips = open_held_out(data.train_data, shape, run.seed, whole, pairs.streaming, num_pairs)
            validate = build_validation(pipeline, clips, accelerator, run.output_dir, run.seed, **vars(held_out))
        source = (data.train_data, shape, run.seed, pairs.settings(objective.noise_offset))
        keeps = pairs.latent_cache_dir is None  # else each pose map is read once
        samples = open_stream(accelerator, *source) if pairs.streaming else open_samples(*source, keeps)
        if pairs.latent_cache_dir is not None:
            samples = cache_samples(accelerator, pipeline, samples, pairs.latent_cache_dir, model.train_image_encoder)
        noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        loss_fn = StageOneLoss(pipeline, noise_scheduler, shape, **objective.loss_arguments())
        arguments = run.loop_arguments(None if pairs.streaming else len(samples), accelerator.num_processes)
        train(accelerator, module, loss_fn, samples, validate=validate, **arguments)
    module.to(memory_format=torch.contiguous_format)
    return arguments["max_train_steps"]


def main(options: tuple) -> None:
    """Load, widen, train, write a pipeline folder to `output_dir`, and push it if asked to."""
    model, data, pairs, _, run, _, hub = options
    spare_inputs("output_dir", [run.output_dir], [model.pretrained_model_name_or_path, data.train_data])
    first_step = starting_step(run.output_dir, run.resume_from_checkpoint, run.max_train_steps)
    if pairs.streaming:
        run.loop_arguments(None)
    with open_session(
        settings=option_values(*options), first_step=first_step, **run.session_arguments()
    ) as accelerator:
        how = (data.height, data.width, pairs.pose_radius, model.revision, model.image_encoder_name_or_path)
        pipeline = load_base_pipeline(model.pretrained_model_name_or_path, *how).to(accelerator.device)
        is_main, repo_id = accelerator.is_main_process, hub.hub_model_id
        if is_main:
            print(save_options(run.output_dir, *options).read_text())
        if is_main and hub.push_to_hub:
            repo_id = try_make_repo(repo_id, hub.hub_private_repo) or repo_id
        num_steps = fit(accelerator, pipeline, options) if run.max_train_steps != 0 else 0
        if not is_main:
            return
        pipeline.save_pretrained(run.output_dir)
        print(f"Wrote the pipeline to {run.output_dir}.")
        describe_run(
            run.output_dir,
            num_steps,
            data.train_data,
            hub.hub_picture,
            repo_id=repo_id,
            base_model=model.pretrained_model_name_or_path,
            revision=model.revision,
            options_yaml=format_options(*options),
            license=hub.hub_license,
            parts=model.trained_parts(),
            num_samples=run.global_batch_size(accelerator.num_processes),
        )
        if hub.push_to_hub:
            try_push(run.output_dir, repo_id, private=hub.hub_private_repo)


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"train.py: error: {error}") from None
