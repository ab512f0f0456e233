# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A pipeline on held-out clips beside what its figures must be read against: the predictions, and their
measurement."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from pipeline_dreampose import DreamPosePipeline
from training.metrics import frames as metrics
from training.metrics.clips import Clip
from training.metrics.warping import SurfaceMatch, warp_photo


CLOTH, HAIR = 2, 3  # of `Clip.layers`
MIN_UNSEEN = 0.05  # share of the body below which it is borders of limbs, and not something that is hidden
# name in the tables, which prediction, which truth (`other`: the counterpart drawn in this motion)
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


def to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """Stack pictures of one size.

    Args:
        images (`Sequence[PIL.Image.Image]`): Mode RGB.
    Returns:
        `torch.Tensor`: Shape `[B, 3, H, W]`, range `[0, 1]`, float32.
    """
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255


def sample_frames(
    pipe: DreamPosePipeline,
    photo: Image.Image,
    iuv: Sequence[Image.Image],
    frame_indices: Sequence[int],
    size: tuple[int, int],
    seed: int,
    **call_options,
) -> torch.Tensor:
    """Sample some frames of a clip.

    Args:
        pipe (`DreamPosePipeline`): The model.
        photo (`PIL.Image.Image`): The reference.
        iuv (`Sequence[PIL.Image.Image]`): Of the whole clip; those of the frames' windows alone are looked at.
        frame_indices (`Sequence[int]`): Which frames.
        size (`tuple[int, int]`): Width and height of a frame.
        seed (`int`): Of the noise, which all frames share: a frame does not depend on which others are asked for.
        call_options: Passed to the pipeline.
    Returns:
        `torch.Tensor`: Shape `[T, 3, H, W]`, range `[0, 1]`, on the CPU.
    """
    radius, last = pipe.pose_radius, len(iuv) - 1
    windows = {min(max(i + offset, 0), last) for i in frame_indices for offset in range(-radius, radius + 1)}
    # Every frame keeps its place, which the noise of its steps depends on: where no window reaches, nobody stands.
    nobody = Image.new("RGB", iuv[frame_indices[0]].size)
    poses = [iuv[i] if i in windows else nobody for i in range(len(iuv))]
    options = {"width": size[0], "height": size[1], "frame_indices": list(frame_indices), **call_options}
    generator = torch.Generator().manual_seed(seed)
    return pipe(photo, poses, generator=generator, output_type="pt", **options).frames[0]


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
    black = Image.new("RGB", clip.iuv[0].size)

    def sample(photo: Image.Image, iuv: list[Image.Image], frame_indices: list[int]) -> torch.Tensor:
        return sample_frames(pipe, photo, iuv, frame_indices, clip.targets[0].size, seed, **call_options)

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
    """Predict a clip's consecutive frames: by the model, and by what costs no sampling.

    Args:
        pipe (`DreamPosePipeline`): The model.
        clip (`Clip`): With `run_indices`.
        seed (`int`): That `predict_clip` had.
        own (`torch.Tensor`): Its prediction `own`: targets that lie in the run are not sampled again.
        call_options: Passed to the pipeline.
    Returns:
        `dict[str, torch.Tensor]`: By prediction name, shape `[F, 3, H, W]` for the `F` frames, range `[0, 1]`; empty
            if the clip has no run.
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
    """Warp a clip's photo to some of its frames; shape `[T, 3, H, W]`, range `[0, 1]`. It knows the exact UV."""
    return torch.stack([warp_photo(clip.reference, clip.iuv[0], clip.match(i)) for i in frame_indices])


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
        `dict[str, float]`: `psnr`, `ssim`, `l1`, `foreground_psnr`, `silhouette_iou` and `cloth_psnr`, means over
            frames; frames without loose cloth do not count for `cloth_psnr`.
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


def measure_regions(
    prediction: torch.Tensor,
    targets: Sequence[Image.Image],
    layers: Sequence[Image.Image] | None,
    iuv: Sequence[Image.Image],
    matches: Sequence[SurfaceMatch] | None = None,
) -> dict[str, float]:
    """L1 of one clip's predicted frames in parts of them, over all pixels of a part in all frames.

    It is L1 because a part of few pixels may be met exactly, where PSNR is infinite.

    Args:
        prediction (`torch.Tensor`): Shape `[T, 3, H, W]`, range `[0, 1]`.
        targets (`Sequence[PIL.Image.Image]`): The `T` true frames.
        layers (`Sequence[PIL.Image.Image]`, *optional*): Their layers (`Clip.layers`).
        iuv (`Sequence[PIL.Image.Image]`): Their IUV pictures.
        matches (`Sequence[SurfaceMatch]`, *optional*): Where the photo shows what they show.
    Returns:
        `dict[str, float]`: `seen_l1` and `unseen_l1` of the body that the photo shows and does not show, if `matches`
            are given (less than `MIN_UNSEEN` of the body unseen is none); `cloth_l1` of loose cloth, `hem_l1` of its
            part that lies beyond the body, where no UV reaches, and `hair_l1` of loose hair, if `layers` are. A part
            without a pixel gives `nan`.
    """
    parts = {}
    if matches is not None:
        unseen = torch.stack([match.is_unseen for match in matches])
        body = torch.stack([match.is_body for match in matches])
        parts |= {"seen": body & ~unseen, "unseen": unseen & (unseen.sum() >= MIN_UNSEEN * body.sum())}
    if layers is not None:
        labels, pixels = (torch.from_numpy(np.stack([np.asarray(p) for p in pictures])) for pictures in (layers, iuv))
        cloth, beyond = labels == CLOTH, pixels[..., 2] == 0
        parts |= {"cloth": cloth, "hem": cloth & beyond, "hair": labels == HAIR}
    # One tall picture: then every pixel counts alike, in whichever frame it is.
    tall = [images.transpose(0, 1).flatten(1, 2)[None] for images in (prediction, to_tensor(targets))]
    return {f"{name}_l1": metrics.l1(*tall, mask.flatten(0, 1)[None]).item() for name, mask in parts.items()}


def measure_run(
    prediction: torch.Tensor, targets: Sequence[Image.Image], layers: Sequence[Image.Image] | None
) -> dict[str, float]:
    """Measure how predicted consecutive frames of one clip change.

    Args:
        prediction (`torch.Tensor`): Shape `[F, 3, H, W]`, range `[0, 1]`, `F >= 3`.
        targets (`Sequence[PIL.Image.Image]`): The `F` true frames.
        layers (`Sequence[PIL.Image.Image]`, *optional*): Their layers (`Clip.layers`); without them the static
            background is what no true silhouette touches.
    Returns:
        `dict[str, float]`: `temporal_error` and `flicker`.
    """
    truth = to_tensor(targets)
    if layers is not None:
        figure = torch.from_numpy(np.stack([np.asarray(layer) for layer in layers])) > 0
    else:
        figure = metrics.silhouette(truth, metrics.background_color(truth))
    return {
        "temporal_error": metrics.temporal_error(prediction, truth).item(),
        "flicker": metrics.flicker(prediction, ~figure.any(dim=0)).item(),
    }
