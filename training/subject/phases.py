# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What stage 2 trains in each of its phases, the denoiser and the decoder, and where a run of both goes on."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch import nn

from pipeline_dreampose import DreamPosePipeline
from training.data.augmentation import to_pixel_values
from training.data.latent_cache import FrameEncoders
from training.engine.checkpoints import checkpoint_step, list_checkpoints, resolve_checkpoint
from training.engine.loop import train
from training.engine.precision import held_in, held_on_cpu, weight_dtype
from training.models.autoencoder import VAETrainer, named_loss
from training.models.base_pipeline import is_quantized
from training.models.denoiser import Denoiser, StageOneLoss
from training.models.lora import attached_lora, collect_lora
from training.subject.crop_cache import CachedSubjectPairs
from training.subject.photos import SubjectPairs


PHASES = ("denoiser", "decoder")  # in this order, each with its checkpoints in a folder of this name


def trained_phases(max_train_steps: int | None, decoder_max_train_steps: int) -> list[str]:
    """The phases that are not skipped; a `ValueError` if both are."""
    phases = [phase for phase, number in zip(PHASES, (max_train_steps, decoder_max_train_steps)) if number != 0]
    if not phases:
        raise ValueError("`max_train_steps` and `decoder_max_train_steps` must not both be 0, which trains nothing.")
    return phases


def resume_points(
    output_dir: str | os.PathLike, resume_from_checkpoint: str | os.PathLike | None, phases: Iterable[str] = PHASES
) -> dict[str, str | os.PathLike | None]:
    """Where each phase of a run goes on.

    Args:
        output_dir (`str` or `os.PathLike`): Of the run.
        resume_from_checkpoint (`str` or `os.PathLike`, *optional*):
            `"latest"`: each phase from its newest checkpoint, so that a phase that is through is only read again; a
            checkpoint in a phase's folder: that phase from there, one before it from its newest; `None`: both anew.
        phases (`Iterable[str]`, *optional*): Those that are not skipped.
    Returns:
        `dict`: Phase -> `resume_from_checkpoint` of its own training.
    Raises:
        ValueError: If the checkpoint is none of a phase, a phase would write over one that is further on, or one is
            skipped that has been trained, which the subject would lose.
    """
    points, phases = dict.fromkeys(PHASES, resume_from_checkpoint), list(phases)
    if resume_from_checkpoint not in (None, "latest"):
        phase = Path(resume_from_checkpoint).resolve().parent.name
        if phase not in PHASES:
            raise ValueError(
                f"`resume_from_checkpoint` must be 'latest' or a checkpoint in a folder {' or '.join(PHASES)}, got"
                f" {resume_from_checkpoint}."
            )
        points |= {"decoder": None} if phase == "denoiser" else {"denoiser": "latest"}
        if phase not in phases:
            raise ValueError(f"`resume_from_checkpoint` must be of a phase that trains, got {resume_from_checkpoint}.")
    for phase in set(PHASES) - set(phases):
        if checkpoints := list_checkpoints(Path(output_dir) / phase):
            raise ValueError(
                f"`output_dir` must hold no checkpoint of a phase that is skipped, got {checkpoints[-1]}: the subject"
                " would lose it. To keep it, give its steps and `--resume_from_checkpoint latest`."
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
    """The keyword arguments of [`training.engine.loop.train`] for each phase.

    Args:
        output_dir (`str` or `os.PathLike`): Of the run; each phase has a folder in it.
        points (`Mapping`): From [`resume_points`].
        common (`Mapping[str, Any]`): Of both phases.
        decoder (`Mapping[str, Any]`): In which the decoder's differs.
    """
    special = {"denoiser": {}, "decoder": decoder}
    arguments = {
        phase: common | special[phase] | {"output_dir": Path(output_dir) / phase, "resume_from_checkpoint": point}
        for phase, point in points.items()
    }
    if "decoder" in arguments:
        # In the trackers, which both phases share, one goes on where the other ends.
        first_step = arguments["denoiser"]["max_train_steps"] if "denoiser" in arguments else 0
        arguments["decoder"] |= {"tracker_prefix": "decoder/", "first_tracker_step": first_step}
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
) -> dict[str, Any]:
    """Train one phase after the other: UNet and adapter as in stage 1, then the VAE's decoder.

    What a phase does not need waits on the CPU meanwhile.

    Args:
        accelerator (`Accelerator`): Of the run.
        pipeline (`DreamPosePipeline`): Trained in place, in full; of a LoRA's training it comes back as it was.
        samples (`SubjectPairs`): Of both phases.
        arguments (`Mapping[str, Mapping[str, Any]]`): Phase -> keyword arguments of [`training.engine.loop.train`]; a
            phase that is not in it is skipped.
        configs (`Mapping[str, LoraConfig]`, *optional*): Of the LoRA, by component; `None` trains in full.
        loss_arguments (`Mapping[str, Any]`): Keyword arguments of [`training.models.denoiser.StageOneLoss`].
        channels_last (`bool`, *optional*, defaults to `False`): Hold what trains in channels_last layout meanwhile.
        num_cached_crops (`int`, *optional*, defaults to 0):
            Crops of each photo that are encoded before the first phase, which then needs no encoder; with 0 each
            sample is a crop of its own, encoded in its step.
    Returns:
        `dict[str, Any]`: The LoRA, as arguments of `DreamPosePipeline.save_lora_weights`; empty without one.
    """
    modules = {
        "denoiser": Denoiser(pipeline.unet, pipeline.adapter),
        "decoder": VAETrainer(pipeline.vae, kl_weight=0.0),
    }
    trained = {
        "denoiser": {"unet": pipeline.unet, "adapter": pipeline.adapter},
        "decoder": {"vae": pipeline.vae.decoder},
    }
    lora = {}
    for phase in (phase for phase in PHASES if phase in arguments):
        module, names = modules[phase], trained[phase]
        if channels_last:  # but for a LoRA's own weights, which PEFT views as matrices
            module.to(memory_format=torch.channels_last)
        with _made_trainable(pipeline, names, configs, weight_dtype(accelerator), arguments[phase]["seed"]):
            loss_fn, seen = reconstruct, samples.targets_alone()
            waiting = [pipeline.unet, pipeline.adapter, pipeline.image_encoder]
            if phase == "denoiser":
                seen = samples
                noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
                loss_fn = StageOneLoss(pipeline, noise_scheduler, samples.shape, **loss_arguments)
                waiting = [pipeline.vae.decoder]
                if num_cached_crops and not _is_through(arguments[phase]):
                    encoders = FrameEncoders(pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor)
                    seen = CachedSubjectPairs(samples, encoders, num_cached_crops, accelerator.is_main_process)
                    waiting = [pipeline.vae, pipeline.image_encoder]
            with held_on_cpu(waiting):
                train(accelerator, module, loss_fn, seen, **arguments[phase])
            if configs is not None:
                lora |= collect_lora({name: getattr(pipeline, name) for name in names})
        module.to(memory_format=torch.contiguous_format)
    return lora


def _is_through(arguments: Mapping[str, Any]) -> bool:
    """Whether a phase only reads its last checkpoint."""
    checkpoint = resolve_checkpoint(arguments["output_dir"], arguments.get("resume_from_checkpoint"))
    return checkpoint is not None and (checkpoint_step(checkpoint) or 0) >= arguments["max_train_steps"]


def reconstruct(module: VAETrainer, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and logs of the decoder for the targets of a batch, restored from the mean of their posterior."""
    noise = torch.zeros_like(batch["posterior_noise"])
    return named_loss(module, {"pixel_values": to_pixel_values(batch["target_image"]), "noise": noise})


@contextmanager
def _made_trainable(
    pipeline: DreamPosePipeline,
    trained: Mapping[str, nn.Module],
    configs: Mapping[str, LoraConfig] | None,
    dtype: torch.dtype,
    seed: int,
) -> Iterator[None]:
    """The models of a pipeline ready for a phase: float32 where they train, frozen in `dtype` elsewhere; afterwards as
    before, but for what was trained in full."""
    models = [pipeline.unet, pipeline.adapter, pipeline.image_encoder, pipeline.vae]
    for model in models:
        model.requires_grad_(False)
    for module in trained.values():
        module.requires_grad_(configs is None)
    frozen = [module for model in models if not is_quantized(model) for module in _frozen_modules(model)]
    parts = {name: getattr(pipeline, name) for name in trained}
    with held_in(dtype, frozen), nullcontext() if configs is None else attached_lora(parts, configs, seed):
        yield


def _frozen_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The largest modules in it that have weights of which none trains."""
    trains = {parameter.requires_grad for parameter in module.parameters()}
    if trains == {False}:
        yield module
    elif False in trains:
        for child in module.children():
            yield from _frozen_modules(child)
