# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A pipeline on held-out clips beside what its figures must be read against: the predictions, and their
measurement."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline
from training import metrics
from training.clips import Clip


CLOTH = 2  # of `Clip.layers`
METRICS = ("psnr", "ssim", "l1", "foreground_psnr", "silhouette_iou", "cloth_psnr")
# name in the tables, which prediction, which truth (`other`: the counterpart drawn in this motion)
ROWS = {
    "model": ("own", "own"),
    "VAE round trip": ("vae_round_trip", "own"),
    "copy of the reference": ("copy", "own"),
    "pose dropped": ("pose_dropped", "own"),
    "centre pose five times": ("center_pose", "own"),
    "another subject's photo, against that subject": ("other_photo", "other"),
    "another subject's photo, against the first": ("other_photo", "own"),
}


def to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """Stack pictures of one size.

    Args:
        images (`Sequence[PIL.Image.Image]`): Mode RGB.
    Returns:
        `torch.Tensor`: Shape `[B, 3, H, W]`, range `[0, 1]`, float32.
    """
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255


def predict_clip(pipe: DreamPosePipeline, clip: Clip, seed: int, **call_options) -> dict[str, torch.Tensor]:
    """Predict a clip's targets in every condition of `ROWS`, all from the same noise.

    Args:
        pipe (`DreamPosePipeline`): The model.
        clip (`Clip`): Photo, poses and targets.
        seed (`int`): Of the noise.
        call_options: Passed to the pipeline (steps, guidance scales, chunk size).
    Returns:
        `dict[str, torch.Tensor]`: By prediction name, shape `[T, 3, H, W]` for the `T` targets, range `[0, 1]`; the
            counterpart's only where the clip has one.
    """
    width, height = clip.targets[0].size
    black = Image.new("RGB", clip.iuv[0].size)

    def sample(photo: Image.Image, iuv: list[Image.Image], frame_indices: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        options = {"height": height, "width": width, "frame_indices": frame_indices, **call_options}
        return pipe(photo, iuv, generator=generator, output_type="pt", **options).frames[0]

    repeated = [clip.iuv[i] for i in clip.frame_indices for _ in range(5)]
    predictions = {
        "own": sample(clip.reference, clip.iuv, clip.frame_indices),
        "vae_round_trip": vae_round_trip(pipe, to_tensor(clip.targets)),
        "copy": to_tensor([clip.reference] * len(clip.targets)),
        "pose_dropped": sample(clip.reference, [black] * len(clip.iuv), clip.frame_indices),
        "center_pose": sample(clip.reference, repeated, list(range(2, len(repeated), 5))),
    }
    if clip.other_reference is not None:
        predictions["other_photo"] = sample(clip.other_reference, clip.iuv, clip.frame_indices)
    return predictions


@torch.no_grad()
def vae_round_trip(pipe: DreamPosePipeline, images: torch.Tensor) -> torch.Tensor:
    """Encode pictures to the mean of their posterior and decode it: the best that any denoiser could reach.

    Args:
        pipe (`DreamPosePipeline`): The model; only its VAE is used.
        images (`torch.Tensor`): Shape `[B, 3, H, W]`, range `[0, 1]`.
    Returns:
        `torch.Tensor`: Shape `[B, 3, H, W]`, range `[0, 1]`, float32 on the CPU.
    """
    _, latents = pipe.encode_image((images * 2 - 1).to(pipe.device))
    return pipe.decode_latents(latents)


def measure(prediction: torch.Tensor, targets: Sequence[Image.Image], layers: Sequence[Image.Image] | None) -> dict:
    """Measure predicted frames of one clip.

    Args:
        prediction (`torch.Tensor`): Shape `[T, 3, H, W]`, range `[0, 1]`.
        targets (`Sequence[PIL.Image.Image]`): The `T` true frames.
        layers (`Sequence[PIL.Image.Image]`, *optional*): Their layers (`Clip.layers`); without them `foreground_psnr`
            takes the true silhouette and `cloth_psnr` is `nan`.
    Returns:
        `dict[str, float]`: The mean over frames of each of `METRICS`; frames without loose cloth do not count for
            `cloth_psnr`.
    """
    truth = to_tensor(targets)
    background = metrics.background_color(truth)
    true_silhouette = metrics.silhouette(truth, background)
    foreground, cloth = true_silhouette, torch.zeros_like(true_silhouette)
    if layers is not None:
        labels = torch.from_numpy(np.stack([np.asarray(layer) for layer in layers]))
        foreground, cloth = labels > 0, labels == CLOTH
    values = {
        "psnr": metrics.psnr(prediction, truth),
        "ssim": metrics.ssim(prediction, truth),
        "l1": metrics.l1(prediction, truth),
        "foreground_psnr": metrics.psnr(prediction, truth, foreground),
        "silhouette_iou": metrics.silhouette_iou(metrics.silhouette(prediction, background), true_silhouette),
        "cloth_psnr": metrics.psnr(prediction, truth, cloth),
    }
    return {name: value.nanmean().item() for name, value in values.items()}


def evaluate(
    clips: Sequence[Clip], predict: Callable[[Clip, int], dict[str, torch.Tensor]], keep: int = 0
) -> tuple[dict, list[dict[str, torch.Tensor]]]:
    """Predict and measure clips, row by row of `ROWS`.

    Args:
        clips (`Sequence[Clip]`): At least two.
        predict (`Callable`): From a clip and its position to its predictions, as `predict_clip` gives them.
        keep (`int`, *optional*, defaults to 0): Return the predictions of so many first clips.
    Returns:
        `tuple`: `{"rows": ..., "model_minus_row": ...}`, each by row and metric the mean and standard error over clips
            and their number (differences are taken clip by clip), and the list of kept predictions.
    """
    values: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    kept = []
    for index, clip in enumerate(tqdm(clips, desc="clips", unit="clip")):
        predictions = predict(clip, index)
        kept += [predictions] if index < keep else []
        truths = {"own": (clip.targets, clip.layers), "other": (clip.other_targets, clip.other_layers)}
        for row, (name, truth) in ROWS.items():
            if name in predictions and truths[truth][0] is not None:
                values[row].append(measure(predictions[name], *truths[truth]))
    tensors = {
        row: {metric: torch.tensor([clip[metric] for clip in measured]) for metric in METRICS}
        for row, measured in values.items()
        if len(measured) == len(clips)
    }
    summary = metrics.mean_and_standard_error
    return {
        "rows": {row: {m: summary(v) for m, v in by_metric.items()} for row, by_metric in tensors.items()},
        "model_minus_row": {
            row: {m: summary(tensors["model"][m] - v) for m, v in by_metric.items()}
            for row, by_metric in tensors.items()
            if row != "model"
        },
    }, kept


def markdown_table(rows: dict[str, dict[str, dict]]) -> str:
    """Write rows of figures as a Markdown table.

    Args:
        rows (`dict`): By row and metric, `mean`, `standard_error` and `n`, as `evaluate` gives them.
    Returns:
        `str`: The table, with "mean ± standard error" in its cells, ending in a line break.
    """
    lines = ["| | " + " | ".join(name.replace("_", " ") for name in METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for row, by_metric in rows.items():
        cells = []
        for name in METRICS:
            digits = 2 if name.endswith("psnr") else 3
            cells.append(
                " ± ".join(f"{v:.{digits}f}" for k, v in by_metric[name].items() if k != "n" and v is not None)
            )
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
