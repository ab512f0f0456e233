# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Clips in which the model moves a subject before it is trained, with the texture of the subject's photos.

Photos alone teach the model little about other poses. These clips show the subject in the motions of other people.
Where a point of the body is shown by a photo, the frame has the photo's pixel. Elsewhere it is as the model makes it,
so loose cloth and hair, which no UV covers, stay as the model knows them.
"""

from collections.abc import Sequence
from dataclasses import replace

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline, iuv_to_pose_map
from training.data.frame_pairs import FramePairs
from training.data.frame_stream import FEATURES
from training.media.pictures import to_pictures
from training.metrics.baselines import sample_frames
from training.metrics.clips import fit_labels, fit_picture
from training.metrics.warping import inner_body, take_from_photos
from training.subject.photos import SubjectPairs


NUM_FRAMES = 16  # of each clip
MAX_DISTANCE = 0.1  # in (U, V), of a photo's pixel that a frame takes
_CLIP_DRAWS = 3  # second seed of the choice of clips


def textured_clips(
    pipeline: DreamPosePipeline, photos: SubjectPairs, num_clips: int, show_progress: bool = True
) -> FramePairs:
    """Sample a subject in motions of other people, paste the photos' texture, and return samples of these clips.

    Each clip begins with the first photo, which is the reference of all its frames. The clips depend only on weights,
    data and seed, so a resumed run makes the same ones.

    Args:
        pipeline (`DreamPosePipeline`): It samples with its own defaults.
        photos (`SubjectPairs`): Samples of the subject's photos, with a prior, whose poses are taken.
        num_clips (`int`): Number of clips of up to `NUM_FRAMES` frames, fewer if the prior has fewer parts of videos
            whose poses are all readable.
        show_progress (`bool`, *optional*, defaults to `True`): Show a progress bar.
    Raises:
        ValueError: If the prior has no readable pose.
    """
    canvas, textured = photos.shape.canvas, []
    known = [(fit_picture(row["image"], canvas), fit_labels(row["iuv"], canvas)) for row in photos.dataset]
    inner = [(image, inner_body(iuv)) for image, iuv in known]
    clips = _choose_poses(photos.prior, num_clips, canvas, np.random.default_rng([photos.seed, _CLIP_DRAWS]))
    for number, iuv in enumerate(tqdm(clips, desc="Textured clips", unit="clip", disable=not show_progress)):
        frames = _sample(pipeline, known[0][0], iuv, photos.seed + number)
        textured.append([(_paste(frame, inner, pose), pose) for frame, pose in zip(frames, iuv, strict=True)])
    return pairs_of_clips(photos, textured)


def pairs_of_clips(photos: SubjectPairs, clips: Sequence[Sequence[tuple[Image.Image, Image.Image]]]) -> FramePairs:
    """Return samples of a subject's clips of pictures and IUV pictures, all with the first photo as the reference.

    The clips' pictures must have the size of the training pictures already.
    """
    canvas, first, rows = photos.shape.canvas, photos.dataset[0], []
    photo = (fit_picture(first["image"], canvas), fit_labels(first["iuv"], canvas))
    for number, clip in enumerate(clips):
        rows += [
            {"video_id": str(number), "frame_index": index, "image": image, "iuv": iuv}
            for index, (image, iuv) in enumerate([photo, *clip])
        ]
    settings = replace(photos.settings, reference_frames="first", min_crop_scale=1.0)
    return FramePairs(datasets.Dataset.from_list(rows, features=FEATURES), photos.shape, photos.seed, settings)


def _choose_poses(
    prior: FramePairs, num_clips: int, canvas: tuple[int, int], rng: np.random.Generator
) -> list[list[Image.Image]]:
    """Draw parts of videos without gaps, and read their poses. A part with a bad pose is replaced by another one."""
    parts = []
    for video in prior.videos.values():
        gaps = [i for i in range(1, len(video)) if np.diff(prior.frame_indices[video[i - 1 : i + 1]]) != 1]
        for first, stop in zip([0, *gaps], [*gaps, len(video)]):
            parts += [video[i : min(i + NUM_FRAMES, stop)] for i in range(first, stop, NUM_FRAMES)]
    chosen = rng.choice(len(parts), min(num_clips, len(parts)), replace=False).tolist()
    clips = []
    for part in [*chosen, *sorted(set(range(len(parts))) - set(chosen))]:
        iuv = [_read_iuv(prior, row, canvas) for row in parts[part]]
        if None not in iuv:
            clips.append(iuv)
        if len(clips) == num_clips:
            break
    if not clips:
        raise ValueError("`prior_dataset` must hold readable IUV pictures for `num_textured_clips`, got none.")
    return clips


def _read_iuv(prior: FramePairs, row: int, canvas: tuple[int, int]) -> Image.Image | None:
    """Return the fitted IUV picture of a row, or `None` if it is missing or bad."""
    try:
        picture = prior.columns["iuv"][row]["iuv"]
        if picture is not None:
            iuv_to_pose_map(picture)
            return fit_labels(picture.convert("RGB"), canvas)
    except (OSError, ValueError):  # unreadable, or no IUV picture
        pass
    return None


def _sample(pipeline: DreamPosePipeline, photo: Image.Image, iuv: list[Image.Image], seed: int) -> torch.Tensor:
    """Return the frames of a clip, [F,3,H,W] in [0,1], without a progress bar of their own."""
    before = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(disable=True)
    try:
        return sample_frames(pipeline, photo, iuv, range(len(iuv)), photo.size, seed)
    finally:
        pipeline.set_progress_bar_config(**before)


def _paste(frame: torch.Tensor, photos: list[tuple[Image.Image, Image.Image]], iuv: Image.Image) -> Image.Image:
    """Put the photos' pixels on the body of a frame [3,H,W], where a photo shows the same point."""
    pixels, distance = take_from_photos(photos, iuv)
    textured = torch.where(distance <= MAX_DISTANCE, pixels, frame.float().cpu())
    return to_pictures(textured[None].mul(255).round().byte())[0]
