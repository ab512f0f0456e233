# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Cost of stage 1, told before it starts: samples, time, memory and disk."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.samples import NO_VALIDATION, count_frames
from training.engine.errors import naming_data_set
from training.engine.messages import count, shorten


# Measured with the full-size model at 512x640 in bf16 on one NVIDIA H200, without and with gradient checkpointing:
# samples per second (`benchmarks/speed/training_step_full_cuda*.json`), and peak GPU memory in GB by batch (there and
# in `training_memory_full_cuda.json`).
MEASURED_SIZE = (640, 512)  # height and width in pixels
RATES = {"a latent cache": (42.9, 33.3), "pictures": (21.8, 19.4)}
PEAKS = {False: {8: 25.2}, True: {1: 14.5, 8: 15.8}}
SMALLEST_PEAK = 9.3  # with a batch of 1, gradient checkpointing and 8-bit Adam
# Stable Diffusion 1.x: channels of the UNet's blocks, weights of UNet and adapter, CLIP's tokens, factor of the VAE.
BLOCKS, NUM_TRAINED, CLIP_TOKENS, VAE_FACTOR, LATENT_CHANNELS = [320, 640, 1280, 1280], 860_536_322, (50, 768), 8, 4


def is_full_size(block_out_channels: Sequence[int]) -> bool:
    """Whether a UNet with these channels has the size of Stable Diffusion 1.x."""
    return list(block_out_channels) == BLOCKS


def read_channels(model: str | os.PathLike) -> Sequence[int]:
    """Return the UNet's channels of a pipeline folder. A Hub id is taken for Stable Diffusion 1.x."""
    config = Path(model, "unet", "config.json")
    return json.loads(config.read_text())["block_out_channels"] if config.is_file() else BLOCKS


def describe_run(
    model: str | os.PathLike,
    train_data: str,
    loop_arguments: Callable[[int], Mapping[str, Any]],
    size: tuple[int, int],
    cached: bool = False,
    gradient_checkpointing: bool = False,
    validates: bool = False,
) -> list[str]:
    """Return lines about data, samples, time, memory and disk of a run in one process. Nothing is drawn.

    Args:
        model (`str` or `os.PathLike`): Folder or Hub id of the pipeline to start from.
        train_data (`str`): Folder or id of the training data.
        loop_arguments (`Callable`): Number of samples per epoch -> arguments of [`training.engine.loop.train`].
        size (`tuple[int, int]`): Height and width of the pictures in pixels.
        cached (`bool`, *optional*, defaults to `False`): A latent cache is used.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): The backward pass recomputes activations.
        validates (`bool`, *optional*, defaults to `False`): The run needs the validation split too.
    Raises:
        ValueError: If the run could not open its data.
    """
    with naming_data_set("train_data"):
        if validates:
            count_frames(train_data, "validation", NO_VALIDATION)
        num_clips, num_frames = count_frames(train_data, "train")
    arguments = loop_arguments(num_frames)
    files = list(Path(train_data).rglob("*.parquet")) if Path(train_data).is_dir() else []
    on_disk = f", {_format_bytes(sum(file.stat().st_size for file in files))} on disk" if files else ""
    batch, num_steps = arguments["train_batch_size"], arguments["max_train_steps"]
    batch_size = batch * arguments["gradient_accumulation_steps"]
    num_samples = num_steps * batch_size
    lines = [
        f"data:       {count(num_clips, 'clip')}, {count(num_frames, 'frame')}{on_disk} ({shorten(train_data)})",
        f"samples:    {num_samples:,} in {num_steps:,} steps of {batch_size}, {num_samples / num_frames:.1f} epochs",
    ]
    if not is_full_size(read_channels(model)):
        return [*lines, "time, memory: not measured for a UNet of this size; the bar of a run shows the time left"]
    scale = size[0] * size[1] / (MEASURED_SIZE[0] * MEASURED_SIZE[1])
    source = "a latent cache" if cached else "pictures"
    rate = RATES[source][gradient_checkpointing] / scale
    how = "measured" if scale == 1 else "scaled by the number of pixels from 512x640, where it was measured"
    checkpoint = NUM_TRAINED * 4 * (3 if arguments["ema_decay"] is None else 4)  # weights, two moments, average
    kept = arguments["checkpoints_total_limit"]
    disk = f"{_format_bytes(checkpoint)} per checkpoint ({'all' if kept is None else kept} kept)"
    disk += f", {_format_bytes(cache_bytes(num_frames, size))} for the latent cache" if cached else ""
    return [
        *lines,
        f"time:       {_format_hours(num_samples / rate)} on one H200 with --mixed_precision bf16, {rate:.0f} samples "
        f"per second from {source} ({how})",
        f"GPU memory: {_describe_memory(batch, gradient_checkpointing, scale)}",
        f"disk:       {disk}",
    ]


def _describe_memory(batch: int, gradient_checkpointing: bool, scale: float) -> str:
    peaks = PEAKS[gradient_checkpointing]
    if scale > 1 or batch > max(peaks):
        text = "more than was measured"
    elif scale == 1 and batch in peaks:
        text = f"{peaks[batch]} GB (measured)"
    else:
        text = f"at most {peaks[max(peaks)]} GB (measured at 512x640 with a batch of {max(peaks)})"
    return f"{text}; the least is {SMALLEST_PEAK} GB, by --train_batch_size 1 --gradient_checkpointing --use_8bit_adam"


def cache_bytes(num_frames: int, size: tuple[int, int]) -> int:
    """Return the size of a latent cache: posterior mean and deviation, CLIP's tokens, and the pose map in 8 bit."""
    num_cells = size[0] * size[1] // VAE_FACTOR**2
    return num_frames * (2 * 2 * LATENT_CHANNELS * num_cells + 2 * CLIP_TOKENS[0] * CLIP_TOKENS[1] + 2 * num_cells)


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _format_hours(seconds: float) -> str:
    if seconds < 90:
        return "about a minute" if seconds > 30 else "less than a minute"
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"
