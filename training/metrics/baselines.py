# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Predictions of a pipeline and of simple baselines on held-out clips, and their measurement."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image

from pipeline_dreampose import DreamPosePipeline
from training.data.procedural_figure import CLOTH, HAIR
from training.metrics import frames as metrics
from training.metrics.clips import Clip
from training.metrics.warping import SurfaceMatch, warp_photo


MIN_UNSEEN = 0.05  # below this share of the body, unseen pixels are borders of limbs and not a hidden side
# Rows of the tables: the prediction and the truth that each compares. `other` is the other subject in this motion.
ROWS = {
    "model": ("own", "own"),
    "VAE round trip": ("vae_round_trip", "own"),
    "copy of the reference": ("copy", "own"),
    "warp of the reference": ("warp", "own"),
    "pose dropped": ("pose_dropped", "own"),
    "centre pose five times": ("center_pose", "own"),
    "another subject's photo, against that subject": ("other_photo", "other"),
    "another subject's photo, against the first": ("other_photo", "own"),
}


def _stack(pictures: Sequence[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


def to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """Stack RGB pictures of one size into a float32 tensor of shape `[B, 3, H, W]` and range `[0, 1]`."""
    return _stack(images).permute(0, 3, 1, 2).float() / 255


def sample_frames(
    pipe: DreamPosePipeline,
    photo: Image.Image,
    iuv: Sequence[Image.Image],
    frame_indices: Sequence[int],
    size: tuple[int, int],
    seed: int,
    **call_options,
) -> torch.Tensor:
    """Sample `T` frames of a clip at `size` (width, height): shape `[T, 3, H, W]`, range `[0, 1]`, on the CPU.

    `iuv` holds the IUV pictures of the whole clip; only those in the windows of `frame_indices` are read. All frames
    share the noise of `seed`, so a frame does not depend on the others. `call_options` go to the pipeline.
    """
    radius, last = pipe.pose_radius, len(iuv) - 1
    windows = {min(max(i + offset, 0), last) for i in frame_indices for offset in range(-radius, radius + 1)}
    # Each frame keeps its position, which seeds the noise of its steps; empty poses replace the unread ones.
    nobody = Image.new("RGB", iuv[frame_indices[0]].size)
    poses = [iuv[i] if i in windows else nobody for i in range(len(iuv))]
    options = {"width": size[0], "height": size[1], "frame_indices": list(frame_indices), **call_options}
    generator = torch.Generator().manual_seed(seed)
    return pipe(photo, poses, generator=generator, output_type="pt", **options).frames[0]


def predict_clip(pipe: DreamPosePipeline, clip: Clip, seed: int, **call_options) -> dict[str, torch.Tensor]:
    """Make every prediction of `ROWS` for a clip's `T` targets, all from the noise of `seed`.

    `call_options` (steps, guidance scales, chunk size) go to the pipeline.

    Returns:
        `dict[str, torch.Tensor]`: Each prediction by name, shape `[T, 3, H, W]`, range `[0, 1]`. `other_photo` is
            there only if the clip has a counterpart.
    """
    sample = partial(sample_frames, pipe, size=clip.targets[0].size, seed=seed, **call_options)
    black = Image.new("RGB", clip.iuv[0].size)
    window = 2 * pipe.pose_radius + 1
    repeated = [clip.iuv[i] for i in clip.frame_indices for _ in range(window)]
    predictions = {
        "own": sample(clip.reference, clip.iuv, clip.frame_indices),
        "vae_round_trip": vae_round_trip(pipe, to_tensor(clip.targets)),
        "copy": to_tensor([clip.reference] * len(clip.targets)),
        "warp": warp_clip(clip, clip.frame_indices),
        "pose_dropped": sample(clip.reference, [black] * len(clip.iuv), clip.frame_indices),
        "center_pose": sample(clip.reference, repeated, list(range(pipe.pose_radius, len(repeated), window))),
    }
    if clip.other_reference is not None:
        predictions["other_photo"] = sample(clip.other_reference, clip.iuv, clip.frame_indices)
    return predictions


def predict_run(
    pipe: DreamPosePipeline, clip: Clip, seed: int, own: torch.Tensor, **call_options
) -> dict[str, torch.Tensor]:
    """Predict a clip's consecutive frames with the model and with the baselines that need no sampling.

    The arguments are those of [`predict_clip`], and its prediction `own`, whose frames are not sampled again.

    Returns:
        `dict[str, torch.Tensor]`: Each prediction by name, shape `[F, 3, H, W]` for `F` `run_indices`, range `[0, 1]`;
            empty if the clip has no consecutive frames.
    """
    if not clip.run_indices:
        return {}
    missing = [i for i in clip.run_indices if i not in clip.frame_indices]
    known = dict(zip(clip.frame_indices, own, strict=True))
    if missing:
        size = clip.targets[0].size
        sampled = sample_frames(pipe, clip.reference, clip.iuv, missing, size, seed, **call_options)
        known |= dict(zip(missing, sampled, strict=True))
    return {
        "own": torch.stack([known[i] for i in clip.run_indices]),
        "vae_round_trip": vae_round_trip(pipe, to_tensor(clip.run_targets)),
        "copy": to_tensor([clip.reference] * len(clip.run_indices)),
        "warp": warp_clip(clip, clip.run_indices),
    }


def warp_clip(clip: Clip, frame_indices: Sequence[int]) -> torch.Tensor:
    """Warp a clip's photo to some of its frames by their exact UV: shape `[T, 3, H, W]`, range `[0, 1]`."""
    return torch.stack([warp_photo(clip.reference, clip.photo_iuv, clip.match(i)) for i in frame_indices])


@torch.no_grad()
def vae_round_trip(pipe: DreamPosePipeline, images: torch.Tensor) -> torch.Tensor:
    """Encode pictures to their posterior mean and decode it: the upper bound for any denoiser.

    `images` and the result have shape `[B, 3, H, W]` and range `[0, 1]`; the result is float32 on the CPU.
    """
    _, latents = pipe.encode_image((images * 2 - 1).to(pipe.device))
    return pipe.decode_latents(latents)


def measure(prediction: torch.Tensor, targets: Sequence[Image.Image], layers: Sequence[Image.Image] | None) -> dict:
    """Measure predicted frames of one clip, shape `[T, 3, H, W]`, range `[0, 1]`, against the `T` true ones.

    `layers` are those of the true frames (see `Clip`). Without them `foreground_psnr` uses the true silhouette and
    `cloth_psnr` is `nan`.

    Returns:
        `dict[str, float]`: Means over frames of `psnr`, `ssim`, `l1`, `foreground_psnr`, `silhouette_iou` and
            `cloth_psnr`, the last over frames with loose cloth only.
    """
    truth = to_tensor(targets)
    background = metrics.background_color(truth)
    true_silhouette = metrics.silhouette(truth, background)
    foreground, cloth = true_silhouette, torch.zeros_like(true_silhouette)
    if layers is not None:
        labels = _stack(layers)
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


def measure_regions(
    prediction: torch.Tensor,
    targets: Sequence[Image.Image],
    layers: Sequence[Image.Image] | None,
    iuv: Sequence[Image.Image],
    matches: Sequence[SurfaceMatch] | None = None,
) -> dict[str, float]:
    """Measure the L1 of parts of one clip's predicted frames, each over all pixels of the part in all frames.

    PSNR would be infinite where all few pixels of a part are predicted exactly. `iuv` are the IUV pictures of the true
    frames, and `matches` say where the photo shows the body of each; see [`measure`] for the other arguments.

    Returns:
        `dict[str, float]`: With `matches`: `seen_l1` and `unseen_l1` of the body that the photo shows and does not
            show; less than `MIN_UNSEEN` of the body counts as nothing unseen. With `layers`: `cloth_l1` of loose
            cloth, `hem_l1` of loose cloth beyond the body, where no UV reaches, and `hair_l1` of loose hair. A part
            without pixels gives `nan`.
    """
    parts = {}
    if matches is not None:
        unseen = torch.stack([match.is_unseen for match in matches])
        body = torch.stack([match.is_body for match in matches])
        parts |= {"seen": body & ~unseen, "unseen": unseen & (unseen.sum() >= MIN_UNSEEN * body.sum())}
    if layers is not None:
        labels, pixels = _stack(layers), _stack(iuv)
        cloth, beyond = labels == CLOTH, pixels[..., 2] == 0
        parts |= {"cloth": cloth, "hem": cloth & beyond, "hair": labels == HAIR}
    # All frames become one tall picture, so that every pixel has the same weight.
    tall = [images.transpose(0, 1).flatten(1, 2)[None] for images in (prediction, to_tensor(targets))]
    return {f"{name}_l1": metrics.l1(*tall, mask.flatten(0, 1)[None]).item() for name, mask in parts.items()}


def measure_run(
    prediction: torch.Tensor, targets: Sequence[Image.Image], layers: Sequence[Image.Image] | None
) -> dict[str, float]:
    """Measure `temporal_error` and `flicker` of at least three predicted consecutive frames of one clip.

    See [`measure`] for the arguments. Without `layers` the true silhouettes tell the figure from the background.
    """
    truth = to_tensor(targets)
    figure = metrics.silhouette(truth, metrics.background_color(truth)) if layers is None else _stack(layers) > 0
    return {
        "temporal_error": metrics.temporal_error(prediction, truth).item(),
        "flicker": metrics.flicker(prediction, ~figure.any(dim=0)).item(),
    }
