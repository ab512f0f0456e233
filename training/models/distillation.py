# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Distillation to few steps: a student learns to jump where its teacher walks (arXiv:2310.04378, arXiv:2311.05556).

The teacher is a DreamPose pipeline that samples in many steps with guidance. The student predicts in one forward pass,
without guidance, where the teacher's path ends. It learns this by consistency: from two neighbouring points of a path,
the student must predict the same end. The teacher makes the step between the two points, guided by its own scales, so
that the guidance becomes part of the student.

Legend: `B` batch, `C` latent channels, `h w` latent cells.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import LCMScheduler
from peft import LoraConfig
from torch import nn

from pipeline_dreampose import DreamPosePipeline, teacher_digest
from training.data.frame_pairs import LatentShape
from training.engine.precision import weight_dtype
from training.hub.card_writer import find_hub_id, try_write_card
from training.hub.few_step_card import write_few_step_card
from training.models.denoiser import Denoiser, StageOneLoss
from training.models.lora import FEW_STEP_LAYERS, write_subject_file
from training.models.objective import (
    build_noise_scheduler,
    pseudo_huber_loss,
    replace_rows,
    signal_and_noise_rates,
    to_sample_and_noise,
)


def few_step_lora_configs(rank: int, lora_alpha: int | None = None) -> dict[str, LoraConfig]:
    """Return the LoRA configurations of `unet` and `adapter` for distillation, with the layers of LCM-LoRA."""
    targets = {"unet": list(FEW_STEP_LAYERS), "adapter": ["vae_projection", "token_mixer"]}
    return {
        name: LoraConfig(r=rank, lora_alpha=lora_alpha or rank, target_modules=layers)
        for name, layers in targets.items()
    }


def check_pose_radius(pipeline: DreamPosePipeline, pose_radius: int) -> None:
    """Raise a `ValueError` unless the pose windows of the samples are the model's."""
    if pose_radius != pipeline.pose_radius:
        raise ValueError(f"`pose_radius` must be the model's own, {pipeline.pose_radius}, got {pose_radius}.")


def check_steps(num_inference_steps: int, num_ddim_timesteps: int) -> None:
    """Raise a `ValueError` if the student would take more steps than there are timesteps that it knows."""
    if num_inference_steps > num_ddim_timesteps:
        raise ValueError(
            f"`num_inference_steps` must be at most `num_ddim_timesteps`, {num_ddim_timesteps}, got"
            f" {num_inference_steps}."
        )


def few_step_settings(
    pipeline: DreamPosePipeline, num_ddim_timesteps: int, num_inference_steps: int
) -> dict[str, Any]:
    """Return how the student of a pipeline is sampled, for JSON.

    `scheduler` is the configuration of an `LCMScheduler` whose timesteps are those of the distillation. Both scales
    are 1, so that a step is one forward pass. `teacher` is the digest of the pipeline's UNet.
    """
    arguments, *_ = LCMScheduler.extract_init_dict(dict(pipeline.scheduler.config))
    arguments |= {"original_inference_steps": num_ddim_timesteps, "timestep_spacing": "trailing"}
    return {
        "scheduler": {"_class_name": "LCMScheduler", **arguments},
        "num_inference_steps": num_inference_steps,
        "image_guidance_scale": 1.0,
        "pose_guidance_scale": 1.0,
        "teacher": teacher_digest(pipeline.unet),
    }


def set_few_steps(pipeline: DreamPosePipeline, settings: Mapping[str, Any]) -> None:
    """Make the settings of [`few_step_settings`] a pipeline's scheduler and defaults."""
    pipeline.scheduler = LCMScheduler.from_config(settings["scheduler"])
    names = ("num_inference_steps", "image_guidance_scale", "pose_guidance_scale")
    pipeline.register_to_config(**{f"default_{name}": settings[name] for name in names})


class Teacher:
    """The frozen teacher, which predicts with guidance.

    With a LoRA as the student, the teacher is the student's models with the LoRA switched off. Otherwise it is a copy
    of them, made when this object is made.

    Args:
        accelerator (`Accelerator`): Moves the copy to its device and precision.
        pipeline (`DreamPosePipeline`): Provides UNet, adapter and the noise schedule.
        image_guidance_scale, pose_guidance_scale (`float`, *optional*, default to those in the pipeline's config):
            See [`DreamPosePipeline.__call__`]. The teacher guides in the part of the steps that the pipeline stores.
        is_lora (`bool`, *optional*, defaults to `True`): Whether the student is a LoRA on the pipeline's models.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        pipeline: DreamPosePipeline,
        image_guidance_scale: float | None = None,
        pose_guidance_scale: float | None = None,
        is_lora: bool = True,
    ):
        given = {"image_guidance_scale": image_guidance_scale, "pose_guidance_scale": pose_guidance_scale}
        stored = {name: pipeline.config[f"default_{name}"] for name in given}
        self.scales = stored | {name: scale for name, scale in given.items() if scale is not None}
        self.branches = pipeline.guidance_branches(*self.scales.values())
        num_steps, self.guidance_stop = (
            pipeline.config[f"default_{name}"] for name in ("num_inference_steps", "guidance_stop")
        )
        num_guided = sum(step / num_steps < self.guidance_stop for step in range(num_steps))
        self.num_forwards = num_steps + num_guided * (len(self.branches) - 1)
        self.noise_scheduler = build_noise_scheduler(pipeline.scheduler.config)
        self.switched = [pipeline.unet, pipeline.adapter] if is_lora else []
        self.copy = None
        if not is_lora:
            frozen = Denoiser(copy.deepcopy(pipeline.unet), copy.deepcopy(pipeline.adapter)).requires_grad_(False)
            self.copy = accelerator.prepare_model(frozen.to(weight_dtype(accelerator)), evaluation_mode=True)

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Switch the student's LoRA off, and on again at the end."""
        for model in self.switched:
            model.disable_adapters()
        try:
            yield
        finally:
            for model in self.switched:
                model.enable_adapters()

    @torch.no_grad()
    def predict(
        self,
        module: nn.Module,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        pose_window: torch.Tensor,
        reference: Mapping[str, torch.Tensor],
        null_reference: Mapping[str, torch.Tensor],
        is_guided: torch.Tensor,
    ) -> torch.Tensor:
        """Return the prediction `(B, C, h, w)` in float32, guided in the samples where `is_guided` `(B,)` holds.

        `module` is the student's denoiser. The other arguments are those of
        [`training.models.denoiser.Denoiser.forward`]; `null_reference` are those of the black photo, with `B` = 1.
        """
        nulls = {name: value.expand_as(reference[name]) for name, value in null_reference.items()}
        module = module if self.copy is None else self.copy
        total = torch.zeros_like(noisy_latents, dtype=torch.float32)
        # Without guidance, the branch with photo and pose has the weight 1 and the others 0.
        branches = [*self.branches, *([] if any(all(seen) for _, *seen in self.branches) else [(0.0, True, True)])]
        with self.without_lora():
            for weight, sees_photo, sees_pose in branches:
                photo = reference if sees_photo else nulls
                window = pose_window if sees_pose else torch.zeros_like(pose_window)
                weights = torch.where(is_guided, weight, float(sees_photo and sees_pose)).view(-1, 1, 1, 1)
                total += weights * module(noisy_latents, timesteps, window, **photo).float()
        return total


class ConsistencyLoss(StageOneLoss):
    """The loss of latent consistency distillation as a function of (module, batch), for `training.engine.loop`.

    The path of a sample has the points `t` of a DDIM grid with `num_ddim_timesteps` steps up to the last timestep. One
    point is drawn; the teacher steps from it to the next lower point; the student must predict there and here the same
    clean latents. There, its averaged weights predict, without gradients. From the lowest point the teacher's own
    prediction of the clean latents is the target, which anchors the chain.

    At the last timestep the latents are the noised *photo*, elsewhere the noised target: sampling starts from the
    noised photo. Samples without photo or pose are not needed, since the student is sampled without guidance.

    Args:
        pipeline (`DreamPosePipeline`): Provides VAE, image encoder, feature extractor and adapter.
        shape (`LatentShape`): Sizes of pictures and latents, for the null image.
        teacher (`Teacher`): Makes the steps, on its own noise schedule.
        num_ddim_timesteps (`int`): Points of the grid.
        last_timestep_prob (`float`): Share of the samples at the last timestep, which one-step sampling sees alone.
        huber_scale (`float`): See [`training.models.objective.pseudo_huber_loss`].
    """

    def __init__(
        self,
        pipeline: DreamPosePipeline,
        shape: LatentShape,
        teacher: Teacher,
        num_ddim_timesteps: int = 20,
        last_timestep_prob: float = 0.25,
        huber_scale: float = 1e-3,
    ):
        super().__init__(pipeline, teacher.noise_scheduler, shape)
        self.teacher, self.last_timestep_prob, self.huber_scale = teacher, last_timestep_prob, huber_scale
        self.timesteps = ddim_grid(self.noise_scheduler.config.num_train_timesteps, num_ddim_timesteps)
        # The loop replaces it: within this context the module has its averaged weights.
        self.averaged: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, module: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
        """Return loss and logs of one batch."""
        if "target_image" in batch:
            batch = self.encode_batch(batch)
        scheduler, noise, window = self.noise_scheduler, batch["noise"], batch["pose_window"]
        reference = {name: batch[name] for name in self.null_reference}
        points = draw_points(batch["timestep_draw"], len(self.timesteps), self.last_timestep_prob)
        grid = self.timesteps.to(noise.device)
        timesteps = grid[points]
        latents = batch["target_mean"] + batch["target_std"] * batch["posterior_noise"]
        latents = latents * self.vae.config.scaling_factor
        start = replace_rows(latents, points == len(grid) - 1, batch["image_latents"])
        noisy_latents = scheduler.add_noise(start, noise, timesteps)
        target = self.find_target(module, noisy_latents, points, window, reference)
        model_pred = module(noisy_latents, timesteps, window, **reference)
        predicted, _ = to_sample_and_noise(scheduler, model_pred, noisy_latents, timesteps)
        return pseudo_huber_loss(predicted, target, self.huber_scale), {}

    @torch.no_grad()
    def find_target(
        self,
        module: nn.Module,
        noisy_latents: torch.Tensor,
        points: torch.Tensor,
        pose_window: torch.Tensor,
        reference: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the clean latents that the student must predict at `points` `(B,)` of the grid, `(B, C, h, w)`."""
        scheduler, grid = self.noise_scheduler, self.timesteps.to(noisy_latents.device)
        is_guided = (len(grid) - 1 - points) / len(
            grid
        ) < self.teacher.guidance_stop  # the first step is the last point
        conditions = (pose_window, reference, self.null_reference, is_guided)
        prediction = self.teacher.predict(module, noisy_latents, grid[points], *conditions)
        clean, noise = to_sample_and_noise(scheduler, prediction, noisy_latents, grid[points])
        lower = grid[(points - 1).clamp(min=0)]
        alpha, sigma = signal_and_noise_rates(scheduler, lower)
        stepped = alpha * clean + sigma * noise  # a step of DDIM (arXiv:2010.02502, equation 12 with sigma_t = 0)
        with self.averaged():
            model_pred = module(stepped, lower, pose_window, **reference)
        end, _ = to_sample_and_noise(scheduler, model_pred, stepped, lower)
        return replace_rows(end, points == 0, clean)


def ddim_grid(num_train_timesteps: int, num_ddim_timesteps: int) -> torch.Tensor:
    """Return the rising timesteps of the grid, shape `(num_ddim_timesteps,)`; the last is the last timestep.

    These are the timesteps of an `LCMScheduler` whose `original_inference_steps` is `num_ddim_timesteps`.

    Raises:
        ValueError: If the grid does not divide the timesteps into equal parts, at least two.
    """
    if num_ddim_timesteps < 2 or num_train_timesteps % num_ddim_timesteps:
        raise ValueError(
            f"`num_ddim_timesteps` must be at least 2 and divide the {num_train_timesteps} timesteps of the model,"
            f" got {num_ddim_timesteps}."
        )
    return torch.arange(1, num_ddim_timesteps + 1) * (num_train_timesteps // num_ddim_timesteps) - 1


def draw_points(draw: torch.Tensor, num_points: int, last_point_prob: float) -> torch.Tensor:
    """Map uniform random numbers in [0, 1), shape `(B,)`, to points of a grid (int64).

    The last point has the probability `last_point_prob`; all others are equally likely.
    """
    others = ((draw - last_point_prob) / (1 - last_point_prob) * (num_points - 1)).long()
    return torch.where(draw < last_point_prob, num_points - 1, others.clamp(0, num_points - 2))


def write_student(
    output_dir: Path,
    pipeline: DreamPosePipeline,
    layers: Mapping[str, Any],
    settings: Mapping[str, Any],
    teacher: Teacher,
    *,
    base_model: str,
    revision: str | None,
    rank: int,
    num_steps: int,
    repo_id: str | None = None,
    **card: Any,
) -> None:
    """Write a few-step LoRA, or after full training a pipeline, and its card.

    Args:
        output_dir (`Path`): Output folder.
        pipeline (`DreamPosePipeline`): The trained pipeline, with the student's scheduler and defaults.
        layers (`Mapping[str, Any]`): LoRA as arguments of `save_lora_weights`; empty after full training.
        settings (`Mapping[str, Any]`): From [`few_step_settings`].
        teacher (`Teacher`): The teacher, for the card.
        base_model, revision (`str`): Folder or Hub id of the teacher, and its revision on the Hub.
        rank (`int`): Rank of the LoRA.
        num_steps (`int`): Optimizer steps of the training.
        repo_id (`str`, *optional*): Where the student will be pushed, `OWNER/NAME` or `NAME`.
        card: Further arguments of [`training.hub.few_step_card.write_few_step_card`].
    """
    if layers:
        facts = {"few_steps": json.dumps(settings, sort_keys=True), "base_model": find_hub_id(base_model)}
        facts |= {"revision": revision, "rank": rank, "num_distillation_steps": num_steps, **teacher.scales}
        write_subject_file(output_dir, layers, facts)
    else:
        pipeline.save_pretrained(output_dir)
    print(f"Wrote the student to {output_dir}.")
    card |= {"base_model": base_model, "revision": revision, "rank": rank if layers else None, "num_steps": num_steps}
    card |= {"num_inference_steps": settings["num_inference_steps"], "teacher_forwards": teacher.num_forwards}
    try_write_card(write_few_step_card, output_dir, repo_id, **card, **teacher.scales)
