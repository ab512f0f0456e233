# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Phases of stage 2: training the denoiser, then the VAE's decoder, and resuming a run of both."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from peft import LoraConfig

from pipeline_dreampose import DreamPosePipeline
from training.data.latent_cache import FrameEncoders
from training.data.random_crops import to_pixel_values
from training.engine.checkpoints import checkpoint_step, list_checkpoints, resolve_checkpoint
from training.engine.loop import train
from training.engine.messages import shorten
from training.engine.precision import held_on_cpu, weight_dtype
from training.models.autoencoder import VAETrainer, named_loss
from training.models.denoiser import Denoiser, StageOneLoss
from training.models.lora import collect_lora, made_trainable
from training.subject.crop_cache import CachedSubjectPairs
from training.subject.photos import SubjectPairs
from training.subject.textured_clips import textured_clips


# The phases in their order, each with the option of its number of steps. Its checkpoints are in a folder of its name.
STEPS = {"denoiser": "max_train_steps", "decoder": "decoder_max_train_steps"}
PHASES = tuple(STEPS)
TITLES = {"denoiser": "UNet and adapter", "decoder": "VAE decoder"}


def trained_phases(max_train_steps: int | None, decoder_max_train_steps: int) -> list[str]:
    """Return the phases with at least one step; raise a `ValueError` if there is none."""
    phases = [phase for phase, number in zip(PHASES, (max_train_steps, decoder_max_train_steps)) if number != 0]
    if not phases:
        raise ValueError("`max_train_steps` and `decoder_max_train_steps` must not both be 0, which trains nothing.")
    return phases


def resume_points(
    output_dir: str | os.PathLike, resume_from_checkpoint: str | os.PathLike | None, phases: Iterable[str] = PHASES
) -> dict[str, str | os.PathLike | None]:
    """Find the checkpoint from which each phase of a run resumes.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        resume_from_checkpoint (`str` or `os.PathLike`, *optional*): `None` starts both phases anew. `"latest"` resumes
            each phase from its newest checkpoint. A checkpoint resumes its own phase; the denoiser before it is then
            taken from its newest checkpoint, and the decoder after it starts anew.
        phases (`Iterable[str]`, *optional*): Phases that are not skipped.
    Returns:
        `dict`: Phase -> `resume_from_checkpoint` of its training.
    Raises:
        ValueError: If the checkpoint is not one of a trained phase, a phase would overwrite a later checkpoint, or a
            skipped phase has checkpoints, whose training the subject would lose.
    """
    points, phases = dict.fromkeys(PHASES, resume_from_checkpoint), list(phases)
    if resume_from_checkpoint not in (None, "latest"):
        phase = Path(resume_from_checkpoint).resolve().parent.name
        if phase not in PHASES:
            raise ValueError(
                f"`resume_from_checkpoint` must be 'latest' or a checkpoint in a folder {' or '.join(PHASES)}, got"
                f" {shorten(str(resume_from_checkpoint))}."
            )
        points |= {"decoder": None} if phase == "denoiser" else {"denoiser": "latest"}
        if phase not in phases:
            raise ValueError(
                f"`{STEPS[phase]}` must not be 0 with a checkpoint of this phase, got `resume_from_checkpoint`"
                f" {shorten(str(resume_from_checkpoint))}."
            )
    for phase in set(PHASES) - set(phases):
        if checkpoints := list_checkpoints(Path(output_dir) / phase):
            raise ValueError(
                f"`{STEPS[phase]}` must not be 0, since `output_dir` holds a checkpoint of this phase,"
                f" {checkpoints[-1]}, which the subject would lose. To keep it, give its number of steps and"
                " `--resume_from_checkpoint latest`; to do without it, choose another `--output_dir`."
            )
    points = {phase: points[phase] for phase in phases}
    for phase, point in points.items():
        resolve_checkpoint(Path(output_dir) / phase, point)
    return points


def phase_arguments(
    output_dir: str | os.PathLike,
    points: Mapping[str, str | os.PathLike | None],
    common: Mapping[str, Any],
    decoder: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return the keyword arguments of [`training.engine.loop.train`] for each phase in `points`.

    Both phases have the arguments in `common`; those in `decoder` replace them for the decoder.
    """
    arguments = {
        phase: {**common, "output_dir": Path(output_dir) / phase, "resume_from_checkpoint": point}
        | {"description": TITLES[phase]}
        for phase, point in points.items()
    }
    if "decoder" in arguments:
        # Both phases log to the same trackers, so the decoder's steps follow the denoiser's.
        first_step = arguments["denoiser"]["max_train_steps"] if "denoiser" in arguments else 0
        arguments["decoder"] |= {**decoder, "tracker_prefix": "decoder/", "first_tracker_step": first_step}
    return arguments


def train_subject(
    accelerator: Accelerator,
    pipeline: DreamPosePipeline,
    samples: SubjectPairs,
    arguments: Mapping[str, Mapping[str, Any]],
    configs: Mapping[str, LoraConfig] | None,
    loss_arguments: Mapping[str, Any],
    channels_last: bool = False,
    num_cached_crops: int = 0,
    num_textured_clips: int = 0,
) -> dict[str, Any]:
    """Train the phases one after the other: UNet and adapter with the loss of stage 1, then the VAE's decoder.

    Models that a phase does not need wait on the CPU.

    Args:
        accelerator (`Accelerator`): The run's accelerator.
        pipeline (`DreamPosePipeline`): Full training changes it; LoRA training leaves it as it was.
        samples (`SubjectPairs`): Samples of both phases.
        arguments (`Mapping[str, Mapping[str, Any]]`): Phase -> keyword arguments of [`training.engine.loop.train`];
            phases without an entry are skipped.
        configs (`Mapping[str, LoraConfig]`, *optional*): LoRA of each component; `None` trains all weights.
        loss_arguments (`Mapping[str, Any]`): Keyword arguments of [`training.models.denoiser.StageOneLoss`].
        channels_last (`bool`, *optional*, defaults to `False`): Train in channels_last layout.
        num_cached_crops (`int`, *optional*, defaults to 0): Crops of each photo to encode before the denoiser trains;
            0 encodes a new crop in each step.
        num_textured_clips (`int`, *optional*, defaults to 0): Clips of the prior in which the model moves the subject
            before the denoiser trains, see [`textured_clips`].
    Returns:
        `dict[str, Any]`: The LoRA, as arguments of `DreamPosePipeline.save_lora_weights`; empty without one.
    """
    unet, adapter, vae, image_encoder = pipeline.unet, pipeline.adapter, pipeline.vae, pipeline.image_encoder
    modules = {"denoiser": Denoiser(unet, adapter), "decoder": VAETrainer(vae, kl_weight=0.0)}
    trained = {"denoiser": {"unet": unet, "adapter": adapter}, "decoder": {"vae": vae.decoder}}
    lora = {}
    for phase in (phase for phase in PHASES if phase in arguments):
        module, names = modules[phase], trained[phase]
        has_clips = phase == "denoiser" and num_textured_clips and samples.prior is not None
        if has_clips and not _is_finished(arguments[phase]):
            samples.textured = textured_clips(pipeline, samples, num_textured_clips, accelerator.is_main_process)
        if channels_last:  # before the LoRA is attached, whose weights PEFT views as matrices
            module.to(memory_format=torch.channels_last)
        with made_trainable(pipeline, names, configs, weight_dtype(accelerator), arguments[phase]["seed"]):
            if phase == "denoiser":
                noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
                loss_fn = StageOneLoss(pipeline, noise_scheduler, samples.shape, **loss_arguments)
                dataset, waiting = samples, [vae.decoder]
                if num_cached_crops and not _is_finished(arguments[phase]):
                    encoders = FrameEncoders(vae, image_encoder, pipeline.feature_extractor)
                    dataset = CachedSubjectPairs(samples, encoders, num_cached_crops, accelerator.is_main_process)
                    waiting = [vae, image_encoder]
            else:
                loss_fn, dataset, waiting = reconstruct, samples.targets_alone(), [unet, adapter, image_encoder]
            with held_on_cpu(waiting):
                train(accelerator, module, loss_fn, dataset, **arguments[phase])
            if configs is not None:
                lora |= collect_lora({name: getattr(pipeline, name) for name in names})
        module.to(memory_format=torch.contiguous_format)
    return lora


def _is_finished(arguments: Mapping[str, Any]) -> bool:
    """Whether a phase's checkpoint is its last one, so that no step is left."""
    checkpoint = resolve_checkpoint(arguments["output_dir"], arguments.get("resume_from_checkpoint"))
    return checkpoint is not None and (checkpoint_step(checkpoint) or 0) >= arguments["max_train_steps"]


def reconstruct(module: VAETrainer, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return loss and logs of the decoder on a batch's targets, decoded from their posterior's mean."""
    noise = torch.zeros_like(batch["posterior_noise"])
    return named_loss(module, {"pixel_values": to_pixel_values(batch["target_image"]), "noise": noise})
