# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What `benchmarks.claims.guidance` measures of a pair of guidance scales, and the pictures of all pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from pipeline_dreampose import DreamPosePipeline
from training.media.animation import write_frame
from training.media.charts import heat_map
from training.media.pictures import enlarge, picture_grid, to_pictures
from training.media.settings_file import write_json
from training.metrics.baselines import measure, sample_frames
from training.metrics.clips import Clip


METRICS = {"psnr": 2, "silhouette_iou": 3}  # whether it looks right, whether the pose is met; digits


def pair_name(image_scale: float, pose_scale: float) -> str:
    return f"{image_scale:g}, {pose_scale:g}"


def pair_path(folder: Path, image_scale: float, pose_scale: float) -> Path:
    return folder / f"image_{image_scale:g}_pose_{pose_scale:g}.png"


def measure_pair(
    pipe: DreamPosePipeline,
    clips: Sequence[Clip],
    pair: tuple[float, float],
    num_inference_steps: int | None,
    folder: Path,
) -> None:
    """Measure a pair of scales on all clips, from the same noise as any other pair.

    Args:
        pipe (`DreamPosePipeline`): The model.
        clips (`Sequence[Clip]`): On which.
        pair (`tuple[float, float]`): Image and pose scale.
        num_inference_steps (`int`, *optional*): The model's own if `None`.
        folder (`Path`): Gets the figures of each clip as JSON, and last the first clip's first frame as PNG.
    """
    options = dict(zip(("image_guidance_scale", "pose_guidance_scale"), pair, strict=True))
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    shown = None
    for index, clip in enumerate(clips):
        where = clip.reference, clip.iuv, clip.frame_indices, clip.targets[0].size
        frames = sample_frames(pipe, *where, index, num_inference_steps=num_inference_steps, **options)
        figures = measure(frames, clip.targets, clip.layers)
        for name in METRICS:
            values[name].append(figures[name])
        shown = frames[:1] if shown is None else shown
    path = pair_path(folder, *pair)
    write_json(path.with_suffix(".json"), values)
    write_frame(to_pictures(shown.mul(255).round().to(torch.uint8))[0], path)


def draw_pictures(
    folder: Path, image_scales: Sequence[float], pose_scales: Sequence[float], clip: Clip, scale: int
) -> Image.Image:
    """The frame of all pairs as a labelled grid, image scales downwards, pose scales to the right; below them what
    they were made from and the truth.

    Args:
        folder (`Path`): Where `measure_pair` wrote them.
        image_scales (`Sequence[float]`): One a row.
        pose_scales (`Sequence[float]`): One a column.
        clip (`Clip`): The first one.
        scale (`int`): Enlarges each picture by a whole factor.
    """
    rows = [[Image.open(pair_path(folder, i, p)) for p in pose_scales] for i in image_scales]
    rows.append([clip.reference, clip.iuv[clip.frame_indices[0]], clip.targets[0]])
    titles, row_titles = _titles(image_scales, pose_scales)
    pictures = [[enlarge(picture, scale) for picture in row] for row in rows]
    return picture_grid(pictures, titles, row_titles=[*row_titles, "photo, pose, truth"])


def draw_heat(
    pairs: Mapping[str, Mapping[str, Mapping]], image_scales: Sequence[float], pose_scales: Sequence[float]
) -> Image.Image:
    """Heat maps of the means, one beside another.

    Args:
        pairs (`Mapping`): By `pair_name` and metric, `mean` and the like.
        image_scales (`Sequence[float]`): One a row.
        pose_scales (`Sequence[float]`): One a column.
    """
    maps = []
    for name, digits in METRICS.items():
        means = [[pairs[pair_name(i, p)][name]["mean"] for p in pose_scales] for i in image_scales]
        maps.append(heat_map(means, *_titles(image_scales, pose_scales), digits))
    return picture_grid([maps], [name.replace("_", " ") for name in METRICS], gap=16)


def _titles(image_scales: Sequence[float], pose_scales: Sequence[float]) -> tuple[list[str], list[str]]:
    return [f"pose {scale:g}" for scale in pose_scales], [f"image {scale:g}" for scale in image_scales]
