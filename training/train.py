# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stage 1 of DreamPose: UNet and adapter on a fashion data set (arXiv:2304.06025).

accelerate launch training/train.py --preset paper --train_data FOLDER --output_dir OUTPUT
"""

from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from diffusers import DDPMScheduler

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import FramePairs, LatentShape
from training.data.latent_cache import FrameEncoders, LatentCache, LatentFramePairs, precompute_latents
from training.data.pair_settings import PairSettings
from training.data.prepared import load_prepared
from training.denoiser import Denoiser, StageOneLoss, load_base_pipeline
from training.loop import train
from training.options import (
    DataOptions,
    ModelOptions,
    ObjectiveOptions,
    PairOptions,
    TrainOptions,
    parse,
    save_options,
)
from training.validation import HeldOutPairs


OPTIONS = (ModelOptions, DataOptions, PairOptions, ObjectiveOptions, TrainOptions)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """The option groups, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__)


def load_samples(
    pipeline: DreamPosePipeline, split: str, data: DataOptions, seed: int, settings: PairSettings
) -> FramePairs:
    """The samples of one split, read and encoded as they are asked for."""
    shape = LatentShape.of(pipeline.vae, data.height, data.width)
    return FramePairs(load_prepared(data.train_data, split), shape, seed, settings)


def cache_latents(
    accelerator: Accelerator, pipeline: DreamPosePipeline, samples: FramePairs, folder: str, train_image_encoder: bool
) -> LatentFramePairs:
    """The same samples from a latent cache, of which the processes make what is missing."""
    encoders = FrameEncoders(pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor, train_image_encoder)
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    cache = precompute_latents(folder, samples, encoders, **place)
    accelerator.wait_for_everyone()
    return LatentFramePairs(samples.dataset, samples.shape, samples.seed, samples.settings, LatentCache(cache))


def fit(accelerator: Accelerator, pipeline: DreamPosePipeline, options: tuple) -> None:
    """Train the pipeline's UNet and adapter in place."""
    model, data, pairs, objective, run = options
    module = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder, model.train_image_encoder)
    pipeline.vae.requires_grad_(False)
    if model.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    if run.channels_last:
        module.to(memory_format=torch.channels_last)
    validate = None
    if run.validation_steps is not None:
        # Whole pictures, as the pipeline takes them, whatever training shows.
        settings = PairSettings(pairs.pose_radius, bad_rows=pairs.bad_rows)
        validate = HeldOutPairs(pipeline, load_samples(pipeline, "validation", data, run.seed, settings), run.seed)
    samples = load_samples(pipeline, "train", data, run.seed, pairs.settings(objective.noise_offset))
    if pairs.latent_cache_dir is not None:
        samples = cache_latents(accelerator, pipeline, samples, pairs.latent_cache_dir, model.train_image_encoder)
    loss_options = {name: value for name, value in vars(objective).items() if name != "noise_offset"}
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    loss_fn = StageOneLoss(pipeline, noise_scheduler, samples.shape, **loss_options)
    arguments = run.loop_arguments(len(samples), accelerator.num_processes)
    train(accelerator, module, loss_fn, samples, validate=validate, **arguments)
    module.to(memory_format=torch.contiguous_format)


def main(options: tuple) -> None:
    """Load, widen, train, and write a pipeline folder to `output_dir`."""
    model, data, pairs, _, run = options
    # Who has made a share of a large latent cache waits for the others.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    accelerator = Accelerator(mixed_precision=run.mixed_precision, kwargs_handlers=[patience])
    set_seed(run.seed)
    if accelerator.is_main_process:
        print(save_options(run.output_dir, *options).read_text())
    pipeline = load_base_pipeline(
        model.pretrained_model_name_or_path,
        data.height,
        data.width,
        pairs.pose_radius,
        model.revision,
        model.image_encoder_name_or_path,
    ).to(accelerator.device)
    if run.max_train_steps != 0:
        fit(accelerator, pipeline, options)
    if accelerator.is_main_process:
        pipeline.save_pretrained(run.output_dir)
        print(f"Wrote the pipeline to {run.output_dir}.")


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"train.py: error: {error}") from None
