# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Training steps that `benchmarks.speed.training_step` measures, with random weights."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scripts import measure_in_turn
from benchmarks.speed.data_layouts import ReleaseSamples, load_rows, write_release_layout, write_rows
from benchmarks.speed.sampling_procedures import build_pipeline, timed
from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import FramePairs, LatentShape
from training.data.latent_cache import FrameEncoders, LatentCache, LatentFramePairs, precompute_latents
from training.data.procedural_fashion import ProceduralFashionConfig
from training.engine.loop import train
from training.engine.optimizer import build_optimizer
from training.models.denoiser import Denoiser, StageOneLoss


LEARNING_RATE = 5e-6  # from the paper
MAX_GRAD_NORM = 1.0


class Measured(Exception):
    """Raised to end a run after its timed steps, before it writes a checkpoint."""


class StepClock:
    """Time `num_steps` whole steps, each from its start to the start of the next, after a first step to warm up."""

    def __init__(self, num_steps: int, device: torch.device):
        self.num_steps, self.device = num_steps, device
        self.num_ticks = 0
        self.started = self.seconds = None

    @property
    def num_batches(self) -> int:
        """Batches that a run needs: one to warm up, the timed ones, and one more to end the last of them."""
        return self.num_steps + 2

    def tick(self) -> None:
        """Call this at the start of every step. It raises [`Measured`] in the step after the last timed one."""
        self.num_ticks += 1
        if self.num_ticks == 2:
            self.started = self._now()
        elif self.num_ticks == self.num_batches:
            self.seconds = self._now() - self.started
            raise Measured

    def _now(self) -> float:
        torch.get_device_module(self.device).synchronize()
        return time.perf_counter()


def build_trained(size: str, device: str, gradient_checkpointing: bool, channels_last: bool) -> DreamPosePipeline:
    """Build the pipeline whose UNet and adapter all procedures train. They may change its weights."""
    pipe = build_pipeline(size, device, torch.float32)
    pipe.vae.requires_grad_(False)
    pipe.image_encoder.requires_grad_(False)
    if gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
    return pipe


def draw_samples(pipe: DreamPosePipeline, folder: Path, num_frames: int) -> dict[str, Dataset]:
    """Draw one clip and open it in the release's layout, as prepared rows, and as rows with a latent cache."""
    height, width = pipe.config.default_height, pipe.config.default_width
    config = ProceduralFashionConfig(height=height, width=width, num_frames=num_frames)
    frames = config.clip("train", 0, 0)
    clip = [(Image.fromarray(frame.image), Image.fromarray(frame.iuv)) for frame in frames]
    write_release_layout(clip, folder / "release")
    write_rows(clip, folder / "rows")
    pairs = FramePairs(load_rows(folder / "rows"), LatentShape.of(pipe.vae, height, width), seed=0)
    encoders = FrameEncoders(pipe.vae, pipe.image_encoder, pipe.feature_extractor)
    cache = LatentCache(precompute_latents(folder / "latents", pairs, encoders, batch_size=4))
    return {
        "release": ReleaseSamples(folder / "release", height, width),
        "pictures": pairs,
        "latent_cache": LatentFramePairs(pairs.dataset, pairs.shape, pairs.seed, pairs.settings, cache),
    }


def optimizer_of(pipe: DreamPosePipeline, use_8bit_adam: bool) -> torch.optim.Optimizer:
    """Build the training loop's optimizer, without any state yet."""
    parameters = [*pipe.unet.parameters(), *pipe.adapter.parameters()]
    return build_optimizer(parameters, LEARNING_RATE, use_8bit_adam=use_8bit_adam)


def release_loss(
    accelerator: Accelerator, pipe: DreamPosePipeline, noise_scheduler: DDPMScheduler, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Compute the release's loss of a batch. CLIP's processor, CLIP and two VAE encodings run in the step."""
    vae, device = pipe.vae, accelerator.device
    frame_i, frame_j = (batch[name].to(device, vae.dtype) for name in ("frame_i", "frame_j"))
    latents = vae.encode(frame_j).latent_dist.sample() * vae.config.scaling_factor
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, latents.shape[:1], device=device)
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    pose_window = F.interpolate(batch["pose_j"].to(device), latents.shape[2:])
    pictures = list((batch["frame_i"] / 2 + 0.5).clamp(0, 1))
    inputs = pipe.feature_extractor(images=pictures, do_rescale=False, return_tensors="pt")
    clip_pixel_values = inputs["pixel_values"].to(device, pipe.image_encoder.dtype)
    image_embeds = pipe.image_encoder(clip_pixel_values).last_hidden_state
    image_latents = vae.encode(frame_i).latent_dist.sample() * vae.config.scaling_factor
    with accelerator.autocast():
        states = pipe.adapter(image_embeds, image_latents)
        model_pred = pipe.unet(torch.cat([noisy_latents, pose_window], dim=1), timesteps, states).sample
    return F.mse_loss(model_pred.float(), noise.float())


def run_release(
    accelerator: Accelerator,
    pipe: DreamPosePipeline,
    samples: Dataset,
    batch_size: int,
    num_workers: int,
    clock: StepClock,
    use_8bit_adam: bool = False,
) -> None:
    """Run the loop of the release (johannakarras/DreamPose, train.py at 5bf30b7), without dropout, augmentation and
    TensorBoard."""
    optimizer = optimizer_of(pipe, use_8bit_adam)
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    # One long epoch, because each epoch of a short clip would start new workers.
    order = range(batch_size * clock.num_batches)
    for batch in DataLoader(samples, batch_size, sampler=order, num_workers=num_workers):
        clock.tick()
        loss = release_loss(accelerator, pipe, noise_scheduler, batch)
        loss.backward()
        clip_grad_norm_(pipe.unet.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()


def run_training(
    accelerator: Accelerator,
    pipe: DreamPosePipeline,
    samples: FramePairs,
    batch_size: int,
    num_workers: int,
    output_dir: Path,
    clock: StepClock,
    use_8bit_adam: bool = False,
) -> None:
    """Run this project's loop as `training/train.py` does, with one log line per step."""
    loss_fn = StageOneLoss(pipe, DDPMScheduler.from_config(pipe.scheduler.config), samples.shape)

    def ticking_loss(module, batch):
        clock.tick()
        return loss_fn(module, batch)

    train(
        accelerator,
        Denoiser(pipe.unet, pipe.adapter, pipe.image_encoder),
        ticking_loss,
        samples,
        output_dir=output_dir,
        max_train_steps=clock.num_batches,
        train_batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        use_8bit_adam=use_8bit_adam,
        max_grad_norm=MAX_GRAD_NORM,
        dataloader_num_workers=num_workers,
        checkpointing_steps=None,
        logging_steps=1,
        max_nonfinite_steps=1,  # a skipped step would look fast
    )


def draw_ready_tensors(pipe: DreamPosePipeline, batch_size: int) -> dict[str, torch.Tensor]:
    """Draw the inputs of UNet, adapter and loss for one batch, on the device."""
    height, width = pipe.config.default_height // 8, pipe.config.default_width // 8
    latents = torch.randn(batch_size, 4, height, width)
    ready = {
        "model_input": torch.randn(batch_size, 14, height, width),
        "timesteps": torch.randint(0, 1000, (batch_size,)),
        "image_embeds": torch.randn(batch_size, 50, 768),
        "image_latents": latents,
        "target": torch.randn_like(latents),
    }
    return {name: tensor.to(pipe.device) for name, tensor in ready.items()}


def floor_loss(accelerator: Accelerator, pipe: DreamPosePipeline, ready: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the loss with UNet and adapter from ready tensors."""
    with accelerator.autocast():
        states = pipe.adapter(ready["image_embeds"], ready["image_latents"])
        model_pred = pipe.unet(ready["model_input"], ready["timesteps"], states).sample
    return F.mse_loss(model_pred.float(), ready["target"])


def run_floor(
    accelerator: Accelerator, pipe: DreamPosePipeline, batch_size: int, clock: StepClock, use_8bit_adam: bool = False
) -> None:
    """Run only forward, backward and optimizer, on the same ready tensors in each step."""
    optimizer, ready = optimizer_of(pipe, use_8bit_adam), draw_ready_tensors(pipe, batch_size)
    while True:
        clock.tick()
        floor_loss(accelerator, pipe, ready).backward()
        optimizer.step()
        optimizer.zero_grad()


def measure_steps(procedure: Callable[[StepClock], None], num_steps: int, device: torch.device) -> float:
    """Return the mean seconds per step over `num_steps`."""
    clock = StepClock(num_steps, device)
    with contextlib.suppress(Measured):
        procedure(clock)
    gc.collect()  # frees the optimizer's moments before the next run
    return clock.seconds / num_steps


def measure_rates(
    procedures: Mapping[str, Callable[[StepClock], None]],
    repeats: int,
    num_steps: int,
    batch_size: int,
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, int | None]]:
    """Return the samples per second of all procedures in each round, their medians, and their peak bytes on CUDA."""
    peaks = dict.fromkeys(procedures)

    def measure(name: str) -> float:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        rate = batch_size / measure_steps(procedures[name], num_steps, device)
        if device.type == "cuda":
            peaks[name] = max(peaks[name] or 0, torch.cuda.max_memory_allocated(device))
        return rate

    rates = measure_in_turn({name: partial(measure, name) for name in procedures}, repeats)
    return rates, {name: statistics.median(values) for name, values in rates.items()}, peaks


def count_flops(accelerator: Accelerator, pipe: DreamPosePipeline) -> int:
    """Count the floating-point operations of one sample's forward and backward, including recomputed ones."""
    ready = draw_ready_tensors(pipe, 1)
    with FlopCounterMode(display=False) as counter:
        floor_loss(accelerator, pipe, ready).backward()
    pipe.unet.zero_grad()
    pipe.adapter.zero_grad()
    return counter.get_total_flops()


def measure_matmul(device: torch.device, dtype: torch.dtype, side: int = 8192, repeats: int = 20) -> float:
    """Measure the floating-point operations per second of large matrix products, the ceiling of this device."""
    left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    timed(lambda: left @ right, device.type)  # warm up
    seconds = timed(lambda: [left @ right for _ in range(repeats)], device.type)
    return 2 * side**3 * repeats / seconds
