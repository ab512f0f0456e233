# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Results of a stage-2 run: the subject's file, pictures before and after training, and the card.

A finished run does not fail if pictures or card cannot be written.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline, to_rgb
from training.hub.card_writer import find_hub_id, try_write_card, write_subject_card
from training.hub.repositories import BEFORE_AFTER_NAME, subject_patterns
from training.media.pictures import enlarge, picture_grid
from training.models.lora import ADAPTER_NAME, write_subject_file


logger = logging.getLogger(__name__)

TITLE = "Upload a DreamPose subject"  # commit message on the Hub
SHOWN_HEIGHT = 320  # pixels, of a picture in `before_after.png`, unless the model's are larger
TITLES = ("pose", "photo", "before", "after")
CAPTION = "The training poses, rendered from the first photo: without the subject (before) and with it (after)"


def write_subject(
    output_dir: Path,
    pipeline: DreamPosePipeline,
    layers: Mapping[str, Any],
    photos: datasets.Dataset,
    num_steps: Mapping[str, int],
    *,
    base_model: str,
    revision: str | None,
    rank: int,
    lora_alpha: int | None = None,
    seed: int = 0,
    sample_inference_steps: int = 10,
    hub_sample: bool = False,
    picture: str | None = None,
    repo_id: str | None = None,
    **card: Any,
) -> list[str] | None:
    """Write a subject, or after full training a pipeline, with its pictures and its card.

    Args:
        output_dir (`Path`): Output folder.
        pipeline (`DreamPosePipeline`): The trained pipeline.
        layers (`Mapping[str, Any]`): From [`training.subject.phases.train_subject`]; empty after full training.
        photos (`datasets.Dataset`): The subject's photos.
        num_steps (`Mapping[str, int]`): Optimizer steps of each phase that was not skipped.
        base_model (`str`): Folder or Hub id of the pipeline that training started from.
        revision (`str`, *optional*): Revision of `base_model` on the Hub.
        rank, lora_alpha (`int`): Of the LoRA; `lora_alpha` is `rank` by default.
        seed (`int`, *optional*, defaults to 0): Seed of the pictures' noise.
        sample_inference_steps (`int`, *optional*, defaults to 10): Denoising steps of a LoRA's pictures; 0 draws none.
        hub_sample (`bool`, *optional*, defaults to `False`): Show the pictures on the card, so that they are pushed.
        picture (`str`, *optional*): File of another picture to show on the card.
        repo_id (`str`, *optional*): Where the subject will be pushed, `OWNER/NAME` or `NAME`.
        card: Further arguments of [`training.hub.card_writer.write_subject_card`].
    Returns:
        `list[str]` or `None`: Patterns of the files of a LoRA to push; `None` for a pipeline.
    """
    if layers:
        facts = {"base_model": find_hub_id(base_model), "revision": revision, "num_photos": len(photos)}
        facts |= {"rank": rank, "lora_alpha": lora_alpha or rank}
        facts |= {f"num_{phase}_steps": number for phase, number in num_steps.items()}
        write_subject_file(output_dir, layers, facts)
    else:
        pipeline.save_pretrained(output_dir)
    print(f"Wrote the subject to {output_dir}.")
    drawn = None
    if layers and sample_inference_steps > 0:
        drawn = output_dir / BEFORE_AFTER_NAME
        try:
            draw_before_after(pipeline, output_dir, photos, sample_inference_steps, seed).save(drawn)
        except Exception as error:  # such as too little memory
            drawn.unlink(missing_ok=True)  # an earlier subject's
            logger.warning(f"{drawn} could not be drawn: {error}")
            drawn = None
    if picture is not None:
        card |= {"picture": picture}
    elif hub_sample and drawn is not None:
        card |= {"picture": drawn, "caption": CAPTION}
    card |= {"base_model": base_model, "revision": revision, "num_photos": len(photos), "num_steps": num_steps}
    try_write_card(write_subject_card, output_dir, repo_id, rank=rank if layers else None, **card)
    return subject_patterns(output_dir) if layers else None


def draw_before_after(
    pipeline: DreamPosePipeline, subject: Path, photos: datasets.Dataset, num_inference_steps: int = 10, seed: int = 0
) -> Image.Image:
    """Render each photo's pose from the first photo, without and with the subject, with the same noise.

    `subject` is the folder of a subject that was trained on `pipeline`; afterwards the pipeline is without it.

    Returns:
        `PIL.Image.Image`: One column per photo, with rows for its pose, the photo, and the pictures before and after.
    """
    pictures = [to_rgb(row["image"]) for row in photos]
    poses = [row["iuv"].convert("RGB") for row in photos]
    pipeline.set_progress_bar_config(disable=True)  # one bar for all pictures
    with tqdm(total=2 * len(poses), desc="before and after", unit="picture") as progress_bar:

        def sample() -> list[Image.Image]:
            frames = []
            for pose in poses:  # one by one: sizes may differ, and each pose window repeats one pose
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
    # A small model's pictures are enlarged by a whole factor, so that they can be seen.
    scale = max(1, round(SHOWN_HEIGHT / before[0].height))
    before, after = ([enlarge(picture, scale) for picture in row] for row in (before, after))
    size = before[0].size
    pose_row = [ImageOps.pad(pose, size, Image.Resampling.NEAREST) for pose in poses]
    photo_row = [ImageOps.pad(photo, size, Image.Resampling.LANCZOS, color="white") for photo in pictures]
    return picture_grid([pose_row, photo_row, before, after], row_titles=TITLES)
