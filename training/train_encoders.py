# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The embedded default's own VAE and image encoder, trained from nothing, and the pipeline that stage 1 starts from.

accelerate launch training/train_encoders.py --preset tiny_vae --output_dir FOLDER
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from transformers import CLIPVisionModel

from training.data.encoder_frames import ImageEncoderFrames, VAEFrames, read_pictures
from training.data.frame_pairs import LatentShape
from training.data.samples import load_prepared
from training.engine.checkpoints import starting_state, starting_step
from training.engine.loop import train
from training.engine.session import open_session
from training.models.autoencoder import VAETrainer, measure_latents, named_loss, normalize_latents
from training.models.base_pipeline import build_feature_extractor
from training.models.small_model import ImageEncoderTrainer, build_image_encoder, build_pipeline, build_vae
from training.options.parsing import option_values, parse, save_options
from training.options.run import DataOptions, EncoderOptions, TrainOptions


OPTIONS = (EncoderOptions, DataOptions, TrainOptions)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """The option groups, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__, presets="train_encoders")


def train_vae(accelerator: Accelerator, encoder: EncoderOptions, data: DataOptions, run: TrainOptions) -> None:
    """Train the VAE and write it, with normalised latents, to `output_dir`."""
    dataset = load_prepared(data.train_data, "train")
    vae = build_vae(encoder.latent_channels, tuple(encoder.vae_channels), data.height)
    shape = LatentShape.of(vae, data.height, data.width)
    module = VAETrainer(vae, encoder.mse_weight, encoder.l1_weight, encoder.kl_weight)
    if run.channels_last:
        module.to(memory_format=torch.channels_last)
    # Counted from where the run starts: no batch then holds crops and whole frames, whatever size batches had before.
    start = starting_state(run.output_dir, run.resume_from_checkpoint)
    num_crop_steps = max(0, encoder.num_crop_steps - start["global_step"])
    crop_until = start["num_samples"] + num_crop_steps * run.global_batch_size(accelerator.num_processes)
    frames = VAEFrames(dataset, shape, run.seed, crop_until)
    held_out = read_pictures(load_prepared(data.train_data, "validation"), shape, 64)

    def validate(module, global_step):
        return {"psnr": module.measure_psnr(held_out)}

    arguments = run.loop_arguments(len(frames), accelerator.num_processes)
    train(accelerator, module, named_loss, frames, validate=validate, **arguments)
    if accelerator.is_main_process:
        normalize_latents(vae, *measure_latents(vae, read_pictures(dataset, shape, 512).to(vae.device)))
        vae.to(memory_format=torch.contiguous_format).save_pretrained(run.output_dir)


def train_image_encoder(
    accelerator: Accelerator, encoder: EncoderOptions, data: DataOptions, run: TrainOptions
) -> None:
    """Pre-train the image encoder and write it to `output_dir`."""
    dataset = load_prepared(data.train_data, "train")
    model = build_image_encoder(encoder.image_size, encoder.patch_size, encoder.hidden_size, encoder.num_hidden_layers)
    feature_extractor = build_feature_extractor(encoder.image_size)
    frames = ImageEncoderFrames(dataset, encoder.image_size, feature_extractor, run.seed)
    arguments = run.loop_arguments(len(frames), accelerator.num_processes)
    train(accelerator, ImageEncoderTrainer(model), named_loss, frames, **arguments)
    if accelerator.is_main_process:
        model.save_pretrained(run.output_dir)


def assemble(encoder: EncoderOptions, data: DataOptions, run: TrainOptions) -> None:
    """Write a pipeline of both encoders and an untrained UNet and adapter to `output_dir`."""
    vae = AutoencoderKL.from_pretrained(encoder.vae_dir)
    image_encoder = CLIPVisionModel.from_pretrained(encoder.image_encoder_dir)
    pipeline = build_pipeline(vae, image_encoder, data.height, data.width, tuple(encoder.unet_channels))
    pipeline.save_pretrained(run.output_dir)


def main(options: tuple) -> None:
    """Train one encoder, or assemble the pipeline."""
    encoder, data, run = options
    for name in ("vae_dir", "image_encoder_dir") if encoder.component == "pipeline" else ():
        folder = getattr(encoder, name)
        if folder is None or not (Path(folder) / "config.json").is_file():
            raise ValueError(f"`{name}` must be the folder of a trained model, got {folder!r}.")
    if encoder.component != "vae" and run.validation_steps is not None:
        raise ValueError(f"`validation_steps` must be none but for the VAE, got {run.validation_steps}.")
    first_step = starting_step(run.output_dir, run.resume_from_checkpoint, run.max_train_steps)
    with open_session(
        settings=option_values(*options), first_step=first_step, **run.session_arguments()
    ) as accelerator:
        if accelerator.is_main_process:
            print(save_options(run.output_dir, *options).read_text())
        if encoder.component == "pipeline":
            assemble(encoder, data, run)
        else:
            trainers = {"vae": train_vae, "image_encoder": train_image_encoder}
            trainers[encoder.component](accelerator, encoder, data, run)


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"train_encoders.py: error: {error}") from None
