# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Train the small model's own VAEs and image encoder from nothing, and build the pipeline that stage 1 starts from.

python training/train_encoders.py --preset tiny_vae --output_dir FOLDER
accelerate launch --num_processes 2 training/train_encoders.py ...    # two processes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.options.command import CHECKPOINTS_KEPT, run_command
from training.options.encoders import BEGIN_WITH, EncoderOptions
from training.options.parsing import option_values, parse, save_options
from training.options.run import TrainOptions
from training.options.stage_one import DataOptions


if TYPE_CHECKING:
    from accelerate import Accelerator

OPTIONS = (EncoderOptions, DataOptions, TrainOptions)
MOST_USED = (
    *("component", "train_data", "height", "width", "output_dir", "max_train_steps", "train_batch_size"),
    *("learning_rate", "mixed_precision", "resume_from_checkpoint"),
)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """Return the option groups of a command line, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__, presets="train_encoders", first=MOST_USED)


def train_vae(accelerator: "Accelerator", encoder: EncoderOptions, data: DataOptions, run: TrainOptions) -> None:
    """Train the VAE and normalise its latents, or train one around the latents of another; write it."""
    import torch

    from training.data.encoder_frames import VAEFrames, read_pictures
    from training.data.frame_pairs import LatentShape
    from training.data.samples import load_prepared
    from training.engine.checkpoints import starting_state
    from training.engine.loop import train
    from training.models.autoencoder import VAETrainer, named_loss
    from training.models.doubled_autoencoder import DoubledVAETrainer
    from training.models.small_model import build_vae

    weights, is_doubled = (encoder.mse_weight, encoder.l1_weight), encoder.component == "doubled_vae"
    if is_doubled:
        module = DoubledVAETrainer.around(encoder.vae_dir, *weights, encoder.latent_weight)
    else:
        vae = build_vae(encoder.latent_channels, tuple(encoder.vae_channels), data.height)
        module = VAETrainer(vae, *weights, encoder.kl_weight)
    dataset, shape = load_prepared(data.train_data, "train"), LatentShape.of(module.vae, data.height, data.width)
    module.to(memory_format=torch.channels_last if run.channels_last else torch.preserve_format)
    # Crops are counted from where the run starts, so that no batch mixes crops and whole frames.
    start = starting_state(run.output_dir, run.resume_from_checkpoint)
    num_crop_steps = max(0, encoder.num_crop_steps - start["global_step"])
    crop_until = start["num_samples"] + num_crop_steps * run.global_batch_size(accelerator.num_processes)
    max_noise = encoder.max_latent_noise if is_doubled else None
    frames = VAEFrames(dataset, shape, run.seed, crop_until, max_noise)
    held_out = read_pictures(load_prepared(data.train_data, "validation"), shape, 64)
    arguments = run.loop_arguments(len(frames), accelerator.num_processes)
    arguments |= {"validation_steps": encoder.validation_steps}
    arguments |= {"validate": lambda module, step: module.measure_psnr(held_out)}
    train(accelerator, module, named_loss, frames, **arguments)
    if accelerator.is_main_process:
        module.normalize(read_pictures(dataset, shape, 512).to(module.vae.device))
        module.vae.to(memory_format=torch.contiguous_format).save_pretrained(run.output_dir)


def train_clip(accelerator: "Accelerator", encoder: EncoderOptions, data: DataOptions, run: TrainOptions) -> None:
    """Pre-train the image encoder and write it to `output_dir`."""
    from training.data.encoder_frames import ImageEncoderFrames
    from training.data.samples import load_prepared
    from training.engine.loop import train
    from training.models.autoencoder import named_loss
    from training.models.base_pipeline import build_feature_extractor
    from training.models.small_model import ImageEncoderTrainer, build_image_encoder

    dataset = load_prepared(data.train_data, "train")
    model = build_image_encoder(encoder.image_size, encoder.patch_size, encoder.hidden_size, encoder.num_hidden_layers)
    feature_extractor = build_feature_extractor(encoder.image_size)
    frames = ImageEncoderFrames(dataset, encoder.image_size, feature_extractor, run.seed)
    arguments = run.loop_arguments(len(frames), accelerator.num_processes)
    train(accelerator, ImageEncoderTrainer(model), named_loss, frames, **arguments)
    if accelerator.is_main_process:
        model.save_pretrained(run.output_dir)


def main(options: tuple) -> None:
    """Train one encoder, or write a pipeline of both encoders and an untrained UNet and adapter."""
    from training.engine.checkpoints import starting_state
    from training.engine.errors import naming_data_set
    from training.engine.session import open_session
    from training.models.small_model import join_encoders

    encoder, data, run = options
    for name in BEGIN_WITH.get(encoder.component, ()):
        folder = getattr(encoder, name)
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"`{name}` must be the folder of a trained model, got {folder!r}.")
    start = starting_state(run.output_dir, run.resume_from_checkpoint, run.max_train_steps)["global_step"]
    with open_session(settings=option_values(*options), first_step=start, **run.session_arguments()) as accelerator:
        if accelerator.is_main_process:
            print(save_options(run.output_dir, *options).read_text())
        if encoder.component == "pipeline":
            sizes = data.height, data.width, tuple(encoder.unet_channels)
            join_encoders(encoder.vae_dir, encoder.image_encoder_dir, *sizes).save_pretrained(run.output_dir)
        else:
            train_encoder = train_clip if encoder.component == "image_encoder" else train_vae
            with naming_data_set("train_data"):
                train_encoder(accelerator, encoder, data, run)


if __name__ == "__main__":
    run_command(parse_args, main, CHECKPOINTS_KEPT)
