# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Validation during stage 1: the pipeline samples fixed held-out pairs and animates a held-out clip."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import BadRow, FramePairs, LatentShape
from training.data.pair_settings import PairSettings
from training.data.random_crops import to_pixel_values
from training.data.samples import open_held_out
from training.engine.trackers import log_animation
from training.media.animation import draw_strip
from training.media.pictures import to_pictures, write_gif, write_video
from training.metrics.frames import l1, psnr, ssim, temporal_error


FOLDER = "validation"


@dataclass(frozen=True)
class _Pair:
    """A photo, the IUV pictures of the target's window, the target's place among them, and the target [3,H,W]."""

    photo: Image.Image
    poses: list[Image.Image]
    place: int
    truth: torch.Tensor


class HeldOutPairs:
    """Fixed held-out pairs: samples their targets and compares them with the truth.

    Pairs, noise and order never change in a run, so its figures can be compared with each other. Only the poses
    in the targets' windows stay in memory. If `samples` skip bad rows, the clip's next good frame replaces a bad one,
    and the next clip replaces a clip without good frames.

    `pipeline` shares its parts with the module that trains. `samples` are those of the validation split, with the
    pipeline's pose radius. There are `num_pairs` pairs, at most one per clip. With several `num_inference_steps`, the
    pairs are sampled with each, and a figure's name ends in its number of steps.

    Raises:
        ValueError: If a frame is bad and bad rows are not skipped, or no clip has good frames.
    """

    def __init__(
        self,
        pipeline,
        samples: FramePairs,
        seed: int,
        num_pairs: int = 16,
        num_inference_steps: int | Sequence[int] = 10,
    ):
        self.pipeline, self.seed, self.num_inference_steps = pipeline, seed, num_inference_steps
        pairs = (_read_pair(samples, rows, 5 * k + 3) for k, rows in enumerate(samples.videos.values()))
        self.pairs = list(islice((pair for pair in pairs if pair is not None), num_pairs))
        if not self.pairs:
            raise ValueError("`samples` must have a clip with a good photo and a good target, got bad rows only.")

    @torch.no_grad()
    def __call__(self, module, global_step: int) -> dict[str, float]:
        """Return the mean L1, PSNR and SSIM over the pairs."""
        if isinstance(self.num_inference_steps, int):
            return self.measure(self.num_inference_steps)
        figures = {f"_{number}_step{'s' * (number > 1)}": self.measure(number) for number in self.num_inference_steps}
        return {name + suffix: value for suffix, group in figures.items() for name, value in group.items()}

    def measure(self, num_inference_steps: int) -> dict[str, float]:
        """Sample the pairs with a number of denoising steps; return their mean L1, PSNR and SSIM."""
        options = (self.seed, num_inference_steps)
        frames = [_sample(self.pipeline, p.photo, p.poses, *options, frame_indices=[p.place]) for p in self.pairs]
        prediction, truth = torch.cat(frames), torch.stack([pair.truth for pair in self.pairs]) / 2 + 0.5
        return {metric.__name__: metric(prediction, truth).mean().item() for metric in (l1, psnr, ssim)}


class HeldOutClip:
    """A held-out clip: animates it, writes a strip and a video to `output_dir/validation` and logs them to trackers.

    It uses `num_frames` frames from the start of the first clip without bad frames; the first is the photo.

    Raises:
        ValueError: If a frame is bad and bad rows are not skipped, or every clip has bad frames.
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
        clip = _first_good(samples, _read_clip, [rows[:num_frames] for rows in samples.videos.values()])
        if clip is None:
            raise ValueError("`samples` must have a clip without bad rows, got bad rows in each.")
        self.photo, self.poses, self.truth = clip

    @torch.no_grad()
    def __call__(self, module, global_step: int) -> dict[str, float]:
        """Write and log the animated clip; return its temporal error, which flicker and stiffness raise."""
        # Chunks do not change the frames; gradients and moments may leave memory for few.
        options = (self.seed, self.num_inference_steps)
        prediction = _sample(self.pipeline, self.photo, self.poses, *options, chunk_size=1)
        truth = self.truth / 2 + 0.5
        frames, true_frames = (to_pictures(images.mul(255).round().byte()) for images in (prediction, truth))
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
    validation_inference_steps: int | Sequence[int],
) -> Callable[[torch.nn.Module, int], dict[str, float]]:
    """Join [`HeldOutPairs`] and [`HeldOutClip`] into the one function that `training.engine.loop.train` calls.

    With several numbers of steps, the clip is sampled with the first.
    """
    num_steps = validation_inference_steps
    compare = HeldOutPairs(pipeline, samples, seed, num_validation_pairs, num_steps)
    first = num_steps if isinstance(num_steps, int) else num_steps[0]
    animate = HeldOutClip(pipeline, samples, accelerator, Path(output_dir), seed, num_validation_frames, first)
    return lambda module, global_step: compare(module, global_step) | animate(module, global_step)


def open_validation(
    pipeline: DreamPosePipeline,
    accelerator: Accelerator,
    output_dir: str | os.PathLike,
    source: tuple[str, LatentShape, int, PairSettings],
    streaming: bool,
    **sizes: Any,
) -> Callable[[torch.nn.Module, int], dict[str, float]] | None:
    """Open the held-out data of a run and call [`build_validation`]; only the main process validates.

    `source` and `streaming` are those of [`training.data.samples.open_training`], `sizes` those of
    [`build_validation`].
    """
    if not accelerator.is_main_process:
        return None
    name, shape, seed, settings = source
    # Validation shows whole pictures, as the pipeline does, even if training crops.
    whole = PairSettings(settings.pose_radius, bad_rows=settings.bad_rows)
    clips = open_held_out(name, shape, seed, whole, streaming, sizes["num_validation_pairs"])
    return build_validation(pipeline, clips, accelerator, output_dir, seed, **sizes)


def strip_path(output_dir: str | os.PathLike, global_step: int) -> Path:
    """Return the path of a validation's strip."""
    return Path(output_dir) / FOLDER / f"step-{global_step:06d}.png"


def _sample(pipeline, photo, poses, seed: int, num_inference_steps: int, **options) -> torch.Tensor:
    """Animate a photo: frames [F,3,H,W] in [0,1]."""
    pipeline.set_progress_bar_config(disable=True)
    options |= {"num_inference_steps": num_inference_steps, "generator": torch.Generator().manual_seed(seed)}
    return pipeline(photo, poses, output_type="pt", **options).frames[0]


def _read_clip(samples: FramePairs, rows: list[int]) -> tuple[Image.Image, list[Image.Image], torch.Tensor]:
    """Read a clip: its stored photo and IUV pictures, and its frames [F,3,H,W]."""
    truth = torch.stack([samples.read_frame(row)[0] for row in rows])
    return samples.columns["image"][rows[0]]["image"], _read_poses(samples, rows), truth


def _read_pair(samples: FramePairs, rows: list[int], start: int) -> _Pair | None:
    """Read a clip's first good photo and its first good target from row `start` on; return `None` without them."""
    start %= len(rows)
    photo = _first_good(samples, _read_photo, rows)
    target = _first_good(samples, _read_target, rows[start:] + rows[:start])
    return None if photo is None or target is None else _Pair(photo, *target)


def _first_good(samples: FramePairs, read: Callable[[FramePairs, Any], Any], candidates: list) -> Any:
    """Read the first row, or the first clip, that is not bad; return `None` if all are bad."""
    for candidate in candidates:
        try:
            return read(samples, candidate)
        except BadRow:
            if samples.settings.bad_rows == "raise":
                raise
    return None


def _read_photo(samples: FramePairs, row: int) -> Image.Image:
    """Read the stored picture of a row; the pipeline fits it."""
    samples.read_reference(row)  # raises `BadRow` if the row cannot be a photo
    return samples.columns["image"][row]["image"]


def _read_target(samples: FramePairs, row: int) -> tuple[list[Image.Image], int, torch.Tensor]:
    """Read the stored IUV pictures of a row's window, the row's place among them, and its picture."""
    truth = to_pixel_values(samples.read_target(row)["target_image"])
    window, place = samples.window_rows(row)
    return _read_poses(samples, window), place, truth


def _read_poses(samples: FramePairs, rows: list[int]) -> list[Image.Image]:
    """Read the stored IUV pictures of some rows; the pipeline needs them to be of one size."""
    poses = [samples.columns["iuv"][row]["iuv"] for row in rows]
    if len(sizes := {pose.size for pose in poses}) > 1:
        raise samples.bad_row(rows[0], f"the pose maps from this frame on have several sizes, {sorted(sizes)}")
    return poses
