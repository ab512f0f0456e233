# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Procedures that `benchmarks.speed.sampling` measures, and models of three sizes with random weights."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from benchmarks.scripts import measure_in_turn
from pipeline_dreampose import DreamPoseAdapter, DreamPosePipeline


SIZES = {  # channels of UNet and VAE, layers of the image encoder, height and width; "full" is Stable Diffusion 1.4
    "tiny": ((32, 64, 128, 128), (32, 32, 64, 64), 1, 128, 64),
    "half": ((160, 320, 640, 640), (64, 128, 256, 256), 12, 320, 256),
    "full": ((320, 640, 1280, 1280), (128, 256, 512, 512), 12, 640, 512),
}
SCALES = {"image_guidance_scale": 8.0, "pose_guidance_scale": 3.0}  # three branches
ONE_BRANCH = {"image_guidance_scale": 1.0, "pose_guidance_scale": 1.0}  # no guidance
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def build_pndm() -> PNDMScheduler:
    """Build the release's scheduler."""
    return PNDMScheduler(**BETAS, skip_prk_steps=True)


def build_trailing() -> DDIMScheduler:
    """Build the scheduler of a distilled model, whose first step starts at the last timestep."""
    return DDIMScheduler(**BETAS, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False)


def build_unet(channels: tuple[int, ...], in_channels: int) -> UNet2DConditionModel:
    """Build Stable Diffusion's UNet with other channels."""
    sizes = {"cross_attention_dim": 768, "attention_head_dim": 8}
    return UNet2DConditionModel(in_channels=in_channels, out_channels=4, block_out_channels=channels, **sizes)


def build_vae(channels: tuple[int, ...], layers_per_block: int = 2, **options) -> AutoencoderKL:
    """Build Stable Diffusion's VAE with other channels."""
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    options |= {"block_out_channels": channels, "layers_per_block": layers_per_block, "latent_channels": 4}
    return AutoencoderKL(down_block_types=down, up_block_types=up, **options)


def build_models(size: str) -> dict[str, nn.Module]:
    """Build VAE, UNet, image encoder and adapter with random weights on torch's default device."""
    unet_channels, vae_channels, num_layers, height, width = SIZES[size]
    return {
        "vae": build_vae(vae_channels),
        "unet": build_unet(unet_channels, 14),
        "image_encoder": CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=num_layers)),
        "adapter": DreamPoseAdapter(pooled_height=height // 16, pooled_width=width // 16),
    }


def build_pipeline(size: str, device: str, dtype: torch.dtype) -> DreamPosePipeline:
    """Build the pipeline with seeded random weights and its stored defaults of size and scales."""
    *_, height, width = SIZES[size]
    torch.manual_seed(0)
    with torch.device(device):  # drawing a billion weights is fast on a GPU
        models = build_models(size)
    pipe = DreamPosePipeline(
        **models,
        feature_extractor=CLIPImageProcessor(),
        scheduler=DPMSolverMultistepScheduler(**BETAS),
        default_height=height,
        default_width=width,
    ).to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_pipeline(
    pipe: DreamPosePipeline,
    scheduler: SchedulerMixin,
    num_frames: int,
    steps: int,
    chunk_size: int = 8,
    scales: Mapping[str, float] = SCALES,
) -> None:
    """Run one whole call of the pipeline, from photo to frames."""
    pipe.scheduler = scheduler
    height, width = pipe.config.default_height, pipe.config.default_width
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(3, height, width, generator=generator)
    pose_maps = torch.rand(num_frames, 2, height, width, generator=generator)
    settings = {"num_inference_steps": steps, "chunk_size": chunk_size, "output_type": "pt", **scales}
    pipe(photo, pose_maps, generator=generator, **settings)


@torch.no_grad()
def run_release(pipe: DreamPosePipeline, num_frames: int, steps: int) -> None:
    """Run the release's procedure: frame by frame, with three branches and three encodings per frame."""
    pipe.scheduler = build_pndm()
    height, width, device = pipe.config.default_height, pipe.config.default_width, pipe.device
    pixel_values = torch.rand(1, 3, height, width, device=device) * 2 - 1
    pose_maps = torch.rand(num_frames, 2, height // 8, width // 8)
    branches = pipe.guidance_branches(*SCALES.values())
    for index in range(num_frames):
        pipe.encode_image(pixel_values)
        states, image_latents = pipe.encode_image(pixel_values)
        null_states = pipe.encode_null_image(height, width, device)
        timesteps = pipe.set_timesteps(steps, device)
        latents = pipe.prepare_latents(image_latents, timesteps)
        window = pipe.prepare_pose_windows(pose_maps, [index], device)
        for t in timesteps:
            noise_pred = pipe.predict_noise(latents, t, window, states, null_states, branches)
            latents = pipe.scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        pipe.decode_latents(latents)


@torch.no_grad()
def run_floor(pipe: DreamPosePipeline, num_frames: int, steps: int) -> None:
    """Run only the UNet's forward passes and the decoding, on ready tensors."""
    height, width = pipe.config.default_height // 8, pipe.config.default_width // 8
    ready = {"device": pipe.device, "dtype": pipe.unet.dtype}
    model_input = torch.rand(3 * num_frames, 14, height, width, **ready)
    states = torch.rand(3 * num_frames, 50, 768, **ready)
    scheduler = build_pndm()
    scheduler.set_timesteps(steps, device=pipe.device)
    for i, t in enumerate(scheduler.timesteps):
        rows = (
            num_frames + 2 if i == 0 else 3 * num_frames
        )  # all frames start alike: one row for a branch without pose
        pipe.unet(model_input[:rows], t, encoder_hidden_states=states[:rows], return_dict=False)
    pipe.vae.decode(model_input[:num_frames, :4].to(pipe.vae.dtype), return_dict=False)


def build_peer(pipe: DreamPosePipeline, size: str) -> StableDiffusionInstructPix2PixPipeline:
    """Build the most similar pipeline of diffusers. It too has three branches and a widened input."""
    unet = build_unet(SIZES[size][0], 8).to(pipe.device, pipe.unet.dtype)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
    parts = {"vae": pipe.vae, "unet": unet, "scheduler": build_pndm(), **absent}
    peer = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    peer.set_progress_bar_config(disable=True)
    return peer


def run_peer(peer: StableDiffusionInstructPix2PixPipeline, num_frames: int, steps: int, size: tuple) -> None:
    """Run one call with a batch of `num_frames` pictures."""
    embeds = torch.rand(num_frames, 50, 768, device=peer.device, dtype=peer.unet.dtype)
    settings = {"num_inference_steps": steps, "guidance_scale": 8.0, "image_guidance_scale": 3.0, "output_type": "pt"}
    photos = torch.rand(num_frames, 3, *size)
    peer(image=photos, prompt_embeds=embeds, negative_prompt_embeds=embeds, **settings)


def build_runs(
    pipe: DreamPosePipeline, size: str, num_frames: int, steps: int, release_steps: int, is_compiled: bool
) -> dict[str, tuple[int, int, Callable[[int], None]]]:
    """Return all procedures by name: number of frames, number of steps, and the function that takes the steps."""
    peer, scheduler, default_steps = build_peer(pipe, size), pipe.scheduler, pipe.config.default_num_inference_steps
    if is_compiled:
        pipe.unet, peer.unet = torch.compile(pipe.unet), torch.compile(peer.unet)
    n = num_frames
    return {
        "release": (1, steps, lambda k: run_release(pipe, 1, k)),
        "release_defaults": (1, release_steps, lambda k: run_release(pipe, 1, k)),
        "pipeline": (n, steps, lambda k: run_pipeline(pipe, build_pndm(), n, k, chunk_size=n)),
        "pipeline_defaults": (n, default_steps, lambda k: run_pipeline(pipe, scheduler, n, k, chunk_size=n)),
        "distilled_4": (n, 4, lambda k: run_pipeline(pipe, build_trailing(), n, k, n, ONE_BRANCH)),
        "distilled_1": (n, 1, lambda k: run_pipeline(pipe, build_trailing(), n, k, n, ONE_BRANCH)),
        "floor": (n, steps, lambda k: run_floor(pipe, n, k)),
        "instruct_pix2pix": (n, steps, lambda k: run_peer(peer, n, k, SIZES[size][3:])),
    }


def timed(function: Callable, device: str) -> float:
    """Time one call in seconds, including the work that it leaves to the GPU."""
    started = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_runs(
    runs: Mapping[str, tuple[int, int, Callable[[int], None]]], repeats: int, device: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds per frame of all runs of [`build_runs`] in each round, and their medians."""
    for _, _, call in runs.values():  # warm up
        call(1)

    def measure(num_frames: int, steps: int, call: Callable[[int], None]) -> float:
        return timed(partial(call, steps), device) / num_frames

    seconds = measure_in_turn({name: partial(measure, *run) for name, run in runs.items()}, repeats)
    return seconds, {name: statistics.median(values) for name, values in seconds.items()}


def measure_length(size: str, num_frames: int, num_threads: int) -> dict[str, float]:
    """Measure the seconds per frame at two steps and the peak memory of the process, which must be a fresh one."""
    torch.set_num_threads(num_threads)
    pipe = build_pipeline(size, "cpu", torch.float32)
    run_pipeline(pipe, pipe.scheduler, 8, 2)
    seconds = timed(lambda: run_pipeline(pipe, pipe.scheduler, num_frames, 2), "cpu") / num_frames
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    frame = 4 * 3 * pipe.config.default_height * pipe.config.default_width
    return {"seconds_a_frame": seconds, "peak_bytes": peak, "frames_bytes": num_frames * frame}


def measure_lengths(size: str, lengths: Sequence[int]) -> dict[int, dict[str, float]]:
    """Call [`measure_length`] for each length, each in a fresh process on the CPU."""
    measured, context = {}, multiprocessing.get_context("spawn")
    for num_frames in lengths:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            measured[num_frames] = pool.submit(measure_length, size, num_frames, torch.get_num_threads()).result()
    return measured
