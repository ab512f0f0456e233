# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What a subject changes: the poses of its photos, sampled without it and with it."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline, to_rgb
from training.media.pictures import picture_grid
from training.models.lora import ADAPTER_NAME


TITLES = ("pose", "photo", "before", "after")


def draw_before_after(
    pipeline: DreamPosePipeline,
    subject: Path,
    photos: datasets.Dataset,
    num_inference_steps: int = 10,
    seed: int = 0,
) -> Image.Image:
    """Sample each photo's pose from the first photo, without the subject and with it, by the same noise.

    Args:
        pipeline (`DreamPosePipeline`): The one that the subject was trained on, which comes back without the subject.
        subject (`Path`): Folder of the subject.
        photos (`datasets.Dataset`): From [`training.subject.photos.load_photos`].
        num_inference_steps (`int`, *optional*, defaults to 10): Denoising steps.
        seed (`int`, *optional*, defaults to 0): Of the noise.
    Returns:
        `PIL.Image.Image`: A column for each photo; below each other its pose, the photo, both samples.
    """
    pictures = [to_rgb(row["image"]) for row in photos]
    poses = [row["iuv"].convert("RGB") for row in photos]
    pipeline.set_progress_bar_config(disable=True)  # one bar over all of them
    with tqdm(total=2 * len(poses), desc="before and after", unit="picture") as progress_bar:

        def sample() -> list[Image.Image]:
            frames = []
            for pose in poses:  # one by one: they may differ in size, and each fills its window alone
                generator = torch.Generator().manual_seed(seed)
                options = {"num_inference_steps": num_inference_steps, "generator": generator}
                frames += pipeline(pictures[0], [pose], **options).frames[0]
                progress_bar.update()
            return frames

        before = sample()
        pipeline.load_lora_weights(subject, adapter_name=ADAPTER_NAME)
        try:
            after = sample()
        finally:
            pipeline.unload_lora_weights()
    return _lay_out(poses, pictures, before, after)


def _lay_out(
    poses: Sequence[Image.Image],
    photos: Sequence[Image.Image],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
) -> Image.Image:
    size = before[0].size
    pose_row = [ImageOps.pad(pose, size, Image.Resampling.NEAREST) for pose in poses]
    photo_row = [ImageOps.pad(photo, size, Image.Resampling.LANCZOS, color="white") for photo in photos]
    return picture_grid([pose_row, photo_row, before, after], row_titles=TITLES)
