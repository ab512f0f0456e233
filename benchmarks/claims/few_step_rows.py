# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Rows of the few-step benchmark: the teacher, a distilled LoRA and a distilled model, and their figures on clips."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from benchmarks.claims.clip_sampling import sample_clips
from pipeline_dreampose import DreamPosePipeline
from training.hub.repositories import load_pipeline
from training.media.pictures import picture_grid, to_pictures
from training.metrics import baselines
from training.metrics.baselines import to_tensor
from training.metrics.clips import Clip
from training.metrics.learned import LearnedMetrics


Row = tuple[str, str | None, dict[str, Any]]  # model, LoRA, options of the call
METRICS = ("psnr", "ssim", "foreground_psnr", "cloth_psnr", "hem_l1", "hair_l1", "identity_distance")
METRICS += ("temporal_error", "flicker", "sharpness")
TEACHER = "teacher, 15 steps"
FIFTEEN = {"num_inference_steps": 15, "guidance_stop": 1.0}
SCALES = ("image_guidance_scale", "pose_guidance_scale")


def sharpness(prediction: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the energy of the differences between neighbouring pixels [F,3,H,W], as a share of the truth's."""
    energies = [sum(images.diff(dim=dim).square().mean() for dim in (-1, -2)) for images in (prediction, truth)]
    return (energies[0] / energies[1]).item()


def measure_clip(learned: LearnedMetrics, clip: Clip, frames: torch.Tensor, run: torch.Tensor) -> dict[str, float]:
    """Measure the target frames and the consecutive frames of a clip."""
    values = baselines.measure(frames, clip.targets, clip.layers)
    poses, matches = zip(*((clip.iuv[i], clip.match(i)) for i in clip.frame_indices))
    values |= baselines.measure_regions(frames, clip.targets, clip.layers, poses, matches)
    values |= learned.measure(frames, to_tensor(clip.targets))
    values |= baselines.measure_run(run, clip.run_targets, clip.run_layers) if len(run) else {}
    values["sharpness"] = sharpness(frames, to_tensor(clip.targets))
    return {name: values[name] for name in METRICS if name in values}


def rows_of(options: argparse.Namespace) -> dict[str, Row]:
    """Return the rows by name: model, LoRA and options of the call."""
    rows = {
        TEACHER: (options.model, None, FIFTEEN),
        "teacher, stored steps": (options.model, None, {}),
        "teacher, 15 steps without guidance": (options.model, None, FIFTEEN | dict.fromkeys(SCALES, 1.0)),
    }
    for kind, (model, lora) in {"LoRA": (options.model, options.lora), "full": (options.full, None)}.items():
        if (lora if kind == "LoRA" else model) is not None:
            rows |= {
                f"{kind}, {number} step{'s' * (number > 1)}": (model, lora, {"num_inference_steps": number})
                for number in options.steps
            }
    return rows


def open_row(model: str, lora: str | None, call: dict[str, Any], device: str) -> DreamPosePipeline:
    """Load the pipeline of a row. Rows with 15 steps sample with leading spacing, which needs that many."""
    pipe = load_pipeline(model, device, lora=lora)
    pipe.set_progress_bar_config(disable=True)
    if call.get("num_inference_steps") == 15:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    return pipe


def measure_row(row: tuple, device: str, clips: Sequence[Clip], num_consecutive: int) -> list[dict[str, float]]:
    """Measure each clip with the pipeline of a row."""
    pipe = open_row(*row, device)
    learned = LearnedMetrics(pipe, num_consecutive=num_consecutive)
    return [measure_clip(learned, *sampled) for sampled in sample_clips(pipe, clips, **row[-1])]


def draw_rows(rows: dict[str, tuple], clips: Sequence[Clip], device: str) -> Image.Image:
    """Draw the same target frames of the first clips by each row, with photo and truth, enlarged."""
    pictures = {"photo": [clip.reference for clip in clips], "truth": [clip.targets[-1] for clip in clips]}
    for name, row in rows.items():
        sampled = sample_clips(open_row(*row, device), clips, **row[-1])
        pictures[name] = [to_pictures(frames[-1:].mul(255).round().byte())[0] for _, frames, _ in sampled]
    return picture_grid(list(pictures.values()), row_titles=list(pictures))
