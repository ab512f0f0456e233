# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Validation while stage 1 trains: fixed held-out pairs, sampled by the pipeline itself."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image

from training.data.frame_pairs import BadRow, FramePairs
from training.metrics import l1, psnr, ssim


@dataclass(frozen=True)
class _Pair:
    """A photo, the IUV pictures of the target's window with the target's place among them, and the target [3,H,W]."""

    photo: Image.Image
    poses: list[Image.Image]
    place: int
    truth: torch.Tensor


class HeldOutPairs:
    """Samples fixed held-out frames and compares them with the truth; called by `training.loop.train`.

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
    truth = samples.read_target(row)["target_pixel_values"]
    window, place = samples.window_rows(row)
    poses = [samples.columns["iuv"][r]["iuv"] for r in window]
    if len(sizes := {pose.size for pose in poses}) > 1:  # which the pipeline refuses
        raise samples.bad_row(row, f"the pose maps around it have {sorted(sizes)} pixels")
    return poses, place, truth
