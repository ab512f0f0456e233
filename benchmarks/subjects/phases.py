# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What `benchmarks.subjects.memory` counts and measures: the phases of stage 2, on random weights of a chosen size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn

from benchmarks.speed.sampling_procedures import SIZES, build_models, build_pipeline
from benchmarks.subjects.memory_counting import (
    LikeOnCuda,
    LiveBytes,
    bytes_by_dtype,
    checkpoint_like_on_cuda,
    count_step,
    optimizer_bytes,
    quantized_bytes,
)
from training.data.frame_pairs import LatentShape
from training.data.latent_cache import pictures_at_a_time
from training.data.pair_settings import PairSettings
from training.data.procedural_fashion import ProceduralFashionConfig
from training.models.autoencoder import VAETrainer
from training.models.base_pipeline import four_bit_arguments, load_subject_base
from training.models.denoiser import Denoiser
from training.models.lora import attached_lora, build_lora_configs
from training.subject.phases import PHASES, phase_arguments, train_subject
from training.subject.photos import SubjectPairs, load_photos


TRAINED = {"denoiser": ("unet", "adapter"), "decoder": ("vae",)}
# What is on the GPU; the encoders only until they have encoded the crops.
ON_DEVICE = {
    "encoding": ("unet", "adapter", "vae", "image_encoder"),
    "denoiser": ("unet", "adapter"),
    "decoder": ("vae",),
}


@dataclass(frozen=True)
class Setting:
    """What of a run its memory depends on; the names are those of the options."""

    train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    mixed_precision: str
    use_8bit_adam: bool
    quantize_base: bool
    rank: int

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return {"no": None, "bf16": torch.bfloat16}[self.mixed_precision]


def count_setting(size: str, setting: Setting) -> dict[str, dict[str, Any]]:
    """Bytes on the GPU by phase, counted on the meta device.

    Args:
        size (`str`): A key of `SIZES`; "full" is Stable Diffusion 1.4 with CLIP ViT-B/32 at 512x640.
        setting (`Setting`): The run.
    Returns:
        `dict`: Phase -> `parameters` by dtype, `gradients`, `optimizer`, `saved_activations`, `step_peak` (these
        activations, gradients and what operations need in between, at most at a time) and the `total` of parameters,
        moments, gradients of earlier batches and this peak.
    """
    with torch.device("meta"):
        models = build_models(size)
    forwards = _build_forwards(size, models, setting.train_batch_size)
    for model in models.values():
        model.requires_grad_(False)
        nn.Module.to(model, setting.autocast_dtype or torch.float32)
    if setting.gradient_checkpointing:
        for name in ("unet", "vae"):
            models[name].enable_gradient_checkpointing(checkpoint_like_on_cuda(setting.autocast_dtype))
    figures = {}
    for phase, parts in TRAINED.items():
        trained_parts = {name: models[name] for name in parts}
        with attached_lora(trained_parts, build_lora_configs(setting.rank), seed=0):
            if phase == "denoiser":
                figures["encoding"] = _sum_up(models, "encoding", setting, _count_encoding(size, models))
            parameters = [value for part in trained_parts.values() for value in part.parameters()]
            step = count_step(forwards[phase], parameters, setting.autocast_dtype)
            figures[phase] = _sum_up(models, phase, setting, step)
    return figures


def _build_forwards(
    size: str, models: Mapping[str, nn.Module], batch_size: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """The forward pass of each phase up to its loss, for inputs on meta."""
    *_, height, width = SIZES[size]
    modules = {
        "denoiser": Denoiser(models["unet"], models["adapter"]),
        "decoder": VAETrainer(models["vae"], kl_weight=0.0),
    }
    with torch.device("meta"):
        latents = torch.empty(batch_size, 4, height // 8, width // 8)
        pose_window = torch.empty(batch_size, 10, height // 8, width // 8)
        timesteps = torch.empty(batch_size, dtype=torch.long)
        image_embeds = torch.empty(batch_size, 50, 768)
        pixel_values = torch.empty(batch_size, 3, height, width)

    def denoise():
        model_pred = modules["denoiser"](latents, timesteps, pose_window, latents, image_embeds=image_embeds)
        return F.mse_loss(model_pred.float(), latents)

    return {"denoiser": denoise, "decoder": lambda: modules["decoder"](pixel_values, latents)["loss"]}


def _count_encoding(size: str, models: Mapping[str, nn.Module]) -> dict[str, int]:
    *_, height, width = SIZES[size]
    vae, image_encoder = models["vae"], models["image_encoder"]
    side = image_encoder.config.image_size
    batch_size = pictures_at_a_time(height, width)
    pixel_values = torch.empty(batch_size, 3, height, width, dtype=vae.dtype, device="meta")
    squares = torch.empty(batch_size, 3, side, side, dtype=image_encoder.dtype, device="meta")
    with torch.no_grad(), LiveBytes() as live, LikeOnCuda():
        vae.encode(pixel_values)
        image_encoder(squares)
    return {"saved_activations": 0, "peak": live.peak}


def _sum_up(models: Mapping[str, nn.Module], phase: str, setting: Setting, step: dict[str, int]) -> dict[str, Any]:
    """Figures of a phase whose LoRA is attached."""
    names, parameters = ON_DEVICE[phase], {}
    for name in names:
        is_quantized = name == "unet" and setting.quantize_base
        own = quantized_bytes(models[name]) if is_quantized else bytes_by_dtype(models[name].parameters())
        parameters |= {dtype: parameters.get(dtype, 0) + num_bytes for dtype, num_bytes in own.items()}
    trained = [value for name in names for value in models[name].parameters() if value.requires_grad]
    gradients, optimizer = sum(p.nbytes for p in trained), optimizer_bytes(trained, setting.use_8bit_adam)
    if phase == "encoding":  # before the optimizer is made
        gradients = optimizer = 0
    earlier = gradients if setting.gradient_accumulation_steps > 1 else 0
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": optimizer,
        "saved_activations": step["saved_activations"],
        "step_peak": step["peak"],
        "total": sum(parameters.values()) + optimizer + earlier + step["peak"],
    }


def measure_setting(size: str, setting: Setting, device: str, num_steps: int, folder: Path) -> dict[str, int | None]:
    """The peak of each phase by `torch.cuda.max_memory_allocated`, in a real run of a few steps; `None` elsewhere.

    Args:
        size (`str`): A key of `SIZES`.
        setting (`Setting`): The run.
        device (`str`): `"cuda"`; `"cpu"` runs the same and tells nothing.
        num_steps (`int`): Optimizer steps of each phase.
        folder (`Path`): For a drawn photo, checkpoints and, in 4 bit, the weights to load.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # of a setting before, whose precision may be another
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=setting.mixed_precision)
    pipe = build_pipeline(size, "cpu", torch.float32)
    if setting.quantize_base:
        pipe.save_pretrained(folder / "base")
        loading = four_bit_arguments(setting.autocast_dtype or torch.float32)
        pipe = load_subject_base(str(folder / "base"), **loading)
    pipe.to(accelerator.device)
    if setting.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        pipe.vae.enable_gradient_checkpointing()
    height, width = pipe.config.default_height, pipe.config.default_width
    (folder / "photos").mkdir()
    # As many as are encoded at a time.
    num_photos = min(16, pictures_at_a_time(height, width))
    drawn = ProceduralFashionConfig(height=height, width=width).clip("train", 0, 0, list(range(num_photos)))
    for number, frame in enumerate(drawn):
        Image.fromarray(frame.image).save(folder / "photos" / f"{number}.png")
        Image.fromarray(frame.iuv).save(folder / "photos" / f"{number}_iuv.png")
    shape = LatentShape.of(pipe.vae, height, width)
    samples = SubjectPairs(load_photos(folder / "photos"), shape, 0, PairSettings())
    names = ("train_batch_size", "gradient_accumulation_steps", "use_8bit_adam")
    common = {name: getattr(setting, name) for name in names}
    common |= {"max_train_steps": num_steps, "learning_rate": 0.0, "checkpointing_steps": None, "seed": 0}
    peaks = {}
    for phase in PHASES:
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        arguments = phase_arguments(folder, {phase: None}, common, {})
        train_subject(accelerator, pipe, samples, arguments, build_lora_configs(setting.rank), {}, num_cached_crops=1)
        peaks[phase] = torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else None
    return peaks
