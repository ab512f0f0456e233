# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Validation while stage 1 trains: fixed held-out pairs and a clip, sampled by the pipeline itself."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from pipeline_dreampose import DreamPosePipeline
from training.data.augmentation import to_pixel_values
from training.data.frame_pairs import BadRow, FramePairs
from training.engine.trackers import log_animation
from training.media.animation import draw_strip
from training.media.pictures import write_gif, write_video
from training.metrics.frames import l1, psnr, ssim, temporal_error


FOLDER = "validation"


@dataclass(frozen=True)
class _Pair:
    """A photo, the IUV pictures of the target's window with the target's place among them, and the target [3,H,W]."""

    photo: Image.Image
    poses: list[Image.Image]
    place: int
    truth: torch.Tensor


class HeldOutPairs:
    """Samples fixed held-out frames and compares them with the truth; called by `training.engine.loop.train`.

    The pairs, their noise and the order never change in a run, so that its figures can be compared with each other.
    Of a clip only what the target's window needs is held. Where the samples skip bad rows, the next frame of the clip
    that is good takes the place of a bad one, and the next clip that of one without any.

    Args:
        pipeline (`DreamPosePipeline`): Shares its parts with the module that trains.
        samples (`FramePairs`): Of the validation split, with the pipeline's pose radius.
        seed (`int`): Of the choice of pairs and the noise.
        num_pairs (`int`, *optional*, defaults to 16): How many frames, each of another clip as far as there are.
        num_inference_steps (`int`, *optional*, defaults to 10): Denoising steps.
    Raises:
        ValueError: If a frame is bad and bad rows are not skipped, or no clip has good ones.
    """

    def __init__(self, pipeline, samples: FramePairs, seed: int, num_pairs: int = 16, num_inference_steps: int = 10):
        self.pipeline, self.seed, self.num_inference_steps = pipeline, seed, num_inference_steps
        pairs = (_read_pair(samples, rows, 5 * k + 3) for k, rows in enumerate(samples.videos.values()))
        self.pairs = list(islice((pair for pair in pairs if pair is not None), num_pairs))
        if not self.pairs:
            raise ValueError("`samples` must have a row that can be validated on, got bad ones only.")

    @torch.no_grad()
    def __call__(self, module, global_step: int) -> dict[str, float]:
        """Mean L1, PSNR and SSIM over the pairs."""
        self.pipeline.set_progress_bar_config(disable=True)
        frames = [
            self.pipeline(
                pair.photo,
                pair.poses,
                frame_indices=[pair.place],
                num_inference_steps=self.num_inference_steps,
                generator=torch.Generator().manual_seed(self.seed),
                output_type="pt",
            ).frames[0]
            for pair in self.pairs
        ]
        prediction = torch.cat(frames)
        truth = torch.stack([pair.truth for pair in self.pairs]) / 2 + 0.5
        return {
            name: metric(prediction, truth).mean().item()
            for name, metric in (("l1", l1), ("psnr", psnr), ("ssim", ssim))
        }


class HeldOutClip:
    """Animates one held-out clip and shows it: in `output_dir/validation` as a strip and a video, and in trackers.

    Args:
        pipeline (`DreamPosePipeline`): Shares its parts with the module that trains.
        samples (`FramePairs`): Of the validation split. Of its clips, the first whose frames are all good is taken.
        accelerator (`Accelerator`): Has the trackers.
        output_dir (`Path`): Of the run.
        seed (`int`): Of the noise.
        num_frames (`int`, *optional*, defaults to 16): The first so many frames of the clip; the photo is its first.
        num_inference_steps (`int`, *optional*, defaults to 10): Denoising steps.
    Raises:
        ValueError: If a frame is bad and bad rows are not skipped, or no clip is good.
    """

    def __init__(
        self,
        pipeline,
        samples: FramePairs,
        accelerator: Accelerator,
        output_dir: Path,
        seed: int,
        num_frames: int = 16,
        num_inference_steps: int = 10,
    ):
        self.pipeline, self.accelerator, self.output_dir = pipeline, accelerator, output_dir
        self.seed, self.num_inference_steps = seed, num_inference_steps
        clips = (_read_clip(samples, rows[:num_frames]) for rows in samples.videos.values())
        clip = next((clip for clip in clips if clip is not None), None)
        if clip is None:
            raise ValueError("`samples` must have a clip that can be animated, got bad rows in each.")
        self.photo, self.poses, self.truth = clip

    @torch.no_grad()
    def __call__(self, module, global_step: int) -> dict[str, float]:
        """Write and show the clip; returns its temporal error, which flicker and stiffness raise."""
        self.pipeline.set_progress_bar_config(disable=True)
        prediction = self.pipeline(
            self.photo,
            self.poses,
            num_inference_steps=self.num_inference_steps,
            generator=torch.Generator().manual_seed(self.seed),
            # The frames do not depend on it, and gradients and moments may leave room for little more than one.
            chunk_size=1,
            output_type="pt",
        ).frames[0]
        truth = self.truth / 2 + 0.5
        frames, true_frames = (_to_pictures(images) for images in (prediction, truth))
        strip = strip_path(self.output_dir, global_step)
        video, gif = strip.with_suffix(".mp4"), strip.with_suffix(".gif")
        write_video(frames, video)
        write_gif(frames, gif)
        draw_strip(self.photo, self.poses, frames, 8, true_frames).save(strip)
        log_animation(self.accelerator, f"{FOLDER}/clip", strip, video, gif, global_step)
        return {"temporal_error": temporal_error(prediction, truth).item()} if len(frames) > 1 else {}


def build_validation(
    pipeline: DreamPosePipeline,
    samples: FramePairs,
    accelerator: Accelerator,
    output_dir: str | os.PathLike,
    seed: int,
    num_validation_pairs: int,
    num_validation_frames: int,
    validation_inference_steps: int,
) -> Callable[[torch.nn.Module, int], dict[str, float]]:
    """A [`HeldOutClip`] and [`HeldOutPairs`] as the one call that `training.engine.loop.train` makes."""
    num_steps = validation_inference_steps
    compare = HeldOutPairs(pipeline, samples, seed, num_validation_pairs, num_steps)
    animate = HeldOutClip(pipeline, samples, accelerator, Path(output_dir), seed, num_validation_frames, num_steps)
    return lambda module, global_step: compare(module, global_step) | animate(module, global_step)


def strip_path(output_dir: str | os.PathLike, global_step: int) -> Path:
    """The strip of a validation."""
    return Path(output_dir) / FOLDER / f"step-{global_step:06d}.png"


def _to_pictures(images: torch.Tensor) -> list[Image.Image]:
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(images))


def _read_clip(samples: FramePairs, rows: list[int]) -> tuple[Image.Image, list[Image.Image], torch.Tensor] | None:
    """Photo and IUV pictures as they are stored, and the frames [F,3,H,W]; `None` if a row is bad."""
    try:
        truth = torch.stack([samples.read_frame(row)[0] for row in rows])
        poses = _read_poses(samples, rows)
    except BadRow:
        if samples.settings.bad_rows == "raise":
            raise
        return None
    return samples.columns["image"][rows[0]]["image"], poses, truth


def _read_pair(samples: FramePairs, rows: list[int], start: int) -> _Pair | None:
    """The first good photo of a clip and its first good target from a frame on; `None` if it has none."""
    start %= len(rows)
    photo = _first_good(samples, _read_photo, rows)
    target = _first_good(samples, _read_target, rows[start:] + rows[:start])
    return None if photo is None or target is None else _Pair(photo, *target)


def _first_good(samples: FramePairs, read: Callable[[FramePairs, int], Any], rows: list[int]) -> Any:
    """What is read of the first of some rows that is not bad; `None` if all are."""
    for row in rows:
        try:
            return read(samples, row)
        except BadRow:
            if samples.settings.bad_rows == "raise":
                raise
    return None


def _read_photo(samples: FramePairs, row: int) -> Image.Image:
    """The picture of a row as it is stored: the pipeline fits it itself."""
    samples.read_reference(row)  # may it be one?
    return samples.columns["image"][row]["image"]


def _read_target(samples: FramePairs, row: int) -> tuple[list[Image.Image], int, torch.Tensor]:
    """The IUV pictures of a row's window as they are stored, its place among them, and its picture."""
    truth = to_pixel_values(samples.read_target(row)["target_image"])
    window, place = samples.window_rows(row)
    return _read_poses(samples, window), place, truth


def _read_poses(samples: FramePairs, rows: list[int]) -> list[Image.Image]:
    """The IUV pictures of some rows as they are stored, all of one size, since the pipeline takes no others."""
    poses = [samples.columns["iuv"][row]["iuv"] for row in rows]
    if len(sizes := {pose.size for pose in poses}) > 1:
        raise samples.bad_row(rows[0], f"the pose maps from it on have {sorted(sizes)} pixels")
    return poses
