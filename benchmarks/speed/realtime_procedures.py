# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Calls that `benchmarks.speed.realtime` measures: from poses in memory to 8-bit frames, and the floor of one step."""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from PIL import Image
from torch import nn

from benchmarks.claims.clip_sampling import sample_clips
from benchmarks.scripts import measure_in_turn
from benchmarks.speed.sampling_procedures import ONE_BRANCH, timed
from pipeline_dreampose import DreamPosePipeline, iuv_to_pose_map
from training.hub.repositories import load_pipeline
from training.metrics.baselines import to_tensor
from training.metrics.clips import Clip
from training.metrics.frames import mean_and_standard_error, psnr


SAMPLE = Path(__file__).parents[2] / "model_card" / "sample"
GUIDED = {"num_inference_steps": 15, "image_guidance_scale": 2.0, "pose_guidance_scale": 2.0, "guidance_stop": 1.0}
ONE_STEP = {"num_inference_steps": 1, **ONE_BRANCH}
FAST = "fast"  # folder and name of a model's few-step LoRA
VARIANTS = {  # of one step: arguments of [`load_fast`]
    "float32": {},
    "channels last": {"channels_last": True},
    "bfloat16": {"channels_last": True, "dtype": torch.bfloat16},
}
# Parts of a call, none within another, by the methods that do them.
PARTS = {
    "UNet": "unet.forward",
    "VAE decoder": "vae.decode",
    "photo": "encode_image",
    "poses": "prepare_pose_maps",
    "pose windows": "prepare_pose_windows",
    "timesteps": "set_timesteps",
}


class Video:
    """Photo and pose maps `(F, 2, H, W)` of the project's sample; the poses run forwards and backwards."""

    def __init__(self, num_frames: int):
        self.photo = Image.open(SAMPLE / "photo.png").copy()
        poses = torch.stack([iuv_to_pose_map(Image.open(path)) for path in sorted(SAMPLE.glob("poses/*.png"))])
        poses = torch.cat([poses, poses.flip(0)])
        self.pose_maps = poses.repeat(math.ceil(num_frames / len(poses)), 1, 1, 1)[:num_frames]

    def sample(self, pipe: DreamPosePipeline, **options) -> list[Image.Image]:
        """Return the frames of one call."""
        generator = torch.Generator().manual_seed(0)
        return pipe(self.photo, self.pose_maps, generator=generator, **options).frames[0]

    def first_frame(self, pipe: DreamPosePipeline, **options) -> Image.Image:
        """Return the first frame of a stream as soon as it is there."""
        generator = torch.Generator().manual_seed(0)
        return next(pipe.stream(self.photo, self.pose_maps, generator=generator, **options))


def load(model: str) -> DreamPosePipeline:
    """Load a saved pipeline for the CPU."""
    pipe = load_pipeline(model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_guided(model: str) -> DreamPosePipeline:
    """Load a pipeline with the scheduler that goes with `GUIDED`: DPM-Solver++ and leading timesteps."""
    pipe = load(model)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    return pipe


def load_fast(model: str, channels_last: bool = False, dtype: torch.dtype = torch.float32) -> DreamPosePipeline:
    """Load a pipeline for one step, with its few-step LoRA fused. Without one, its own weights take the same time."""
    pipe, lora = load(model), Path(model, FAST)
    if lora.is_dir():
        pipe.load_lora_weights(str(lora), adapter_name=FAST)
        pipe.use_few_steps(FAST)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    else:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    if channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    return pipe.to(dtype)


@torch.no_grad()
def run_floor(pipe: DreamPosePipeline, num_frames: int, chunk_size: int) -> None:
    """Run only the forward passes and the decoding of one step without guidance, on ready tensors."""
    num_chunks = math.ceil(num_frames / chunk_size)
    size, scale = math.ceil(num_frames / num_chunks), pipe.vae_scale_factor
    height, width = pipe.config.default_height // scale, pipe.config.default_width // scale
    model_input = torch.rand(size, pipe.unet.config.in_channels, height, width, dtype=pipe.unet.dtype)
    adapter = pipe.adapter.config
    states = torch.rand(size, adapter.num_image_tokens, adapter.image_embed_dim, dtype=pipe.unet.dtype)
    t = torch.tensor(pipe.scheduler.config.num_train_timesteps - 1)
    for _ in range(num_chunks):
        latents = pipe.unet(model_input, t, encoder_hidden_states=states, return_dict=False)[0]
        pipe.vae.decode(latents, return_dict=False)


def broadcast_attention(pipe: DreamPosePipeline) -> DreamPosePipeline:
    """Let diffusers reuse every other attention of the middle timesteps (Pyramid Attention Broadcast)."""
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)
    return pipe


def compare_psnr(
    pipe: DreamPosePipeline, other: DreamPosePipeline, clips: Sequence[Clip], **options
) -> dict[str, dict[str, float | int | None]]:
    """Return the PSNR of held-out clips, and how much more `other` has, as means with their errors."""
    values = [
        torch.tensor([psnr(frames, to_tensor(clip.targets)).mean().item() for clip, frames, _ in sampled])
        for sampled in (sample_clips(one, clips, **options) for one in (pipe, other))
    ]
    return {"psnr": mean_and_standard_error(values[0]), "change": mean_and_standard_error(values[1] - values[0])}


def measure_quality(model: str, clips: Sequence[Clip]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Call [`compare_psnr`] for broadcast attention, with `GUIDED`, and for the other variants of one step."""
    guided, broadcast = load_guided(model), broadcast_attention(load_guided(model))
    fast, (_, *others) = load_fast(model), VARIANTS
    quality = {"attention broadcast": compare_psnr(guided, broadcast, clips, **GUIDED)}
    for name in others:
        quality[name] = compare_psnr(fast, load_fast(model, **VARIANTS[name]), clips, **ONE_STEP)
    return quality


def build_calls(
    model: str, num_frames: int, chunk_sizes: Sequence[int]
) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return the calls by name, each with its number of frames: the guided default, the stored one, one step by
    variant and chunk size, and the floor of each."""
    few = min(16, num_frames)  # the guided calls are slow
    short, video = Video(few), Video(num_frames)
    guided, broadcast = load_guided(model), broadcast_attention(load_guided(model))
    calls = {
        "guided": (few, partial(short.sample, guided, **GUIDED)),
        "guided, attention broadcast": (few, partial(short.sample, broadcast, **GUIDED)),
        "stored default": (few, partial(short.sample, load(model))),
    }
    for variant, arguments in VARIANTS.items():
        fast = load_fast(model, **arguments)
        for size in chunk_sizes:
            call = partial(video.sample, fast, chunk_size=size, **ONE_STEP)
            calls[f"one step, {variant}, {size}"] = (num_frames, call)
            calls[f"floor, {variant}, {size}"] = (num_frames, partial(run_floor, fast, num_frames, size))
    return calls


def measure_calls(calls: Mapping[str, tuple[int, Callable[[], object]]], repeats: int) -> dict[str, list[float]]:
    """Return the frames per second of each call in each round, after one round that warms up."""
    for _, call in calls.values():
        call()
    measures = {name: lambda call=call, n=n: n / timed(call, "cpu") for name, (n, call) in calls.items()}
    return measure_in_turn(measures, repeats)


def measure_first_frame(model: str, num_frames: int, chunk_size: int, repeats: int) -> list[float]:
    """Return the seconds from the call to the first frame of a stream; the first value is that of a first call."""
    pipe, video = load_fast(model), Video(num_frames)
    first_frame = partial(video.first_frame, pipe, chunk_size=chunk_size, **ONE_STEP)
    return [timed(first_frame, "cpu") for _ in range(1 + repeats)]


@contextmanager
def timed_parts(pipe: DreamPosePipeline) -> Iterator[dict[str, float]]:
    """Yield the seconds spent in each of `PARTS` so far."""
    seconds = dict.fromkeys(PARTS, 0.0)
    with ExitStack() as stack:
        for name, path in PARTS.items():
            *owners, method = path.split(".")
            owner = reduce(getattr, owners, pipe)

            def run(*args, call=getattr(owner, method), name=name, **kwargs):
                started = time.perf_counter()
                result = call(*args, **kwargs)
                seconds[name] += time.perf_counter() - started
                return result

            stack.enter_context(mock.patch.object(owner, method, run))
        yield seconds


def measure_parts(model: str, num_frames: int, chunk_size: int, repeats: int) -> dict[str, float]:
    """Return the share of each of `PARTS` in the time of a call with one step; `rest` is what no part covers."""
    pipe, video = load_fast(model), Video(num_frames)
    sample = partial(video.sample, pipe, chunk_size=chunk_size, **ONE_STEP)
    sample()
    with timed_parts(pipe) as seconds:
        total = sum(timed(sample, "cpu") for _ in range(repeats))
    shares = {name: value / total for name, value in seconds.items()}
    return {**shares, "rest": 1 - sum(shares.values())}


def _send_compiled(connection: Connection, model: str, num_frames: int, chunk_size: int, threads: int) -> None:
    """Send the frames per second of one step, plain and compiled, and the seconds of the first compiled call."""
    torch.set_num_threads(threads)
    video, plain, compiled = Video(num_frames), load_fast(model), load_fast(model)
    models: list[nn.Module] = [compiled.unet, compiled.vae.decoder]
    for one in models:
        one.compile(dynamic=False)
    options = {"chunk_size": chunk_size, **ONE_STEP}
    seconds = timed(partial(video.sample, compiled, **options), "cpu")
    calls = {
        name: (num_frames, partial(video.sample, pipe, **options))
        for name, pipe in (("plain", plain), ("compiled", compiled))
    }
    rates = {name: statistics.median(values) for name, values in measure_calls(calls, 5).items()}
    connection.send({"frames_a_second": rates, "first_call_seconds": seconds})


def measure_compiled(model: str, num_frames: int, chunk_size: int, limit: float) -> dict[str, Any]:
    """Measure `torch.compile` in a process of its own, which is ended after `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    threads = torch.get_num_threads()
    process = context.Process(target=_send_compiled, args=(sender, model, num_frames, chunk_size, threads))
    process.start()
    sender.close()  # so that the receiver sees the end of a process that failed
    try:
        if receiver.poll(limit):
            return {"limit_seconds": limit, **receiver.recv()}
        return {"limit_seconds": limit, "failure": "not finished within the limit"}
    except EOFError:
        return {"limit_seconds": limit, "failure": "the compiler failed on this machine"}
    finally:
        process.kill()
        process.join()
