# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Metrics of predicted frames: pure functions on tensors that open no file.

Axes: `B` images, `C` channels, `H W` pixels. Pictures are `[B, C, H, W]` in `[0, 1]`, masks are boolean `[B, H, W]`.
A metric returns float32 with one value per image, shape `[B]`, so that a caller can average within a clip first and
take the standard error over clips. `temporal_error` and `flicker` return one value per video and `frechet_distance`
one per pair of sets, shape `[]`.
"""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance


def _check_pair(prediction: torch.Tensor, target: torch.Tensor) -> None:
    if prediction.ndim != 4 or prediction.shape != target.shape:
        raise ValueError(
            "`prediction` and `target` must have one shape [B, C, H, W], got "
            f"{list(prediction.shape)} and {list(target.shape)}."
        )
    for name, images in (("prediction", prediction), ("target", target)):
        if not images.is_floating_point() or images.numel() and not 0 <= images.amin() <= images.amax() <= 1:
            found = f"{images.dtype} within [{images.amin().item():.4g}, {images.amax().item():.4g}]"
            raise ValueError(f"`{name}` must be floating point within [0, 1], got {found}.")


def _check_mask(mask: torch.Tensor, name: str = "mask", shape: torch.Size | None = None) -> None:
    if mask.dtype != torch.bool or mask.ndim != 3 or (shape is not None and mask.shape != shape):
        expected = "[B, H, W]" if shape is None else str(list(shape))
        raise ValueError(f"`{name}` must be boolean of shape {expected}, got {mask.dtype} {list(mask.shape)}.")


def _masked_mean(error: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average `error`, shape `[B, H, W]`, over the pixels of each image's mask."""
    _check_mask(mask, shape=error.shape)
    return (error * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))


def l1(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute error over pixels and channels: range `[0, 1]`, lower is better (the `L1` of DreamPose,
    arXiv:2304.06025, table 1).

    Args:
        prediction (`torch.Tensor`): Shape `[B, C, H, W]`, range `[0, 1]`.
        target (`torch.Tensor`): The truth, same shape and range.
        mask (`torch.Tensor`, *optional*): Boolean, shape `[B, H, W]`. Only these pixels count; an image whose mask is
            empty gives `nan`.
    Raises:
        ValueError: If the shapes differ, a value lies outside `[0, 1]` or `mask` is not boolean.
    """
    _check_pair(prediction, target)
    error = (prediction.float() - target.float()).abs()
    return error.mean(dim=(1, 2, 3)) if mask is None else _masked_mean(error.mean(dim=1), mask)


def psnr(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Peak signal-to-noise ratio, `-10 log10(MSE)` dB at peak 1: range `[0, inf]`, higher is better, equal pictures
    give `inf`.

    The squared error is averaged within an image, then the logarithm is taken for each image (like scikit-image's
    `peak_signal_noise_ratio`), never of an error pooled over images.

    Args:
        prediction, target, mask (`torch.Tensor`): See [`l1`], which raises the same errors.
    """
    _check_pair(prediction, target)
    squared_error = (prediction.float() - target.float()).pow(2).mean(dim=1)
    mean = squared_error.mean(dim=(1, 2)) if mask is None else _masked_mean(squared_error, mask)
    return -10 * mean.log10()


def ssim(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al., 2004): range `[-1, 1]`, higher is better, equal pictures give 1.

    It is torchmetrics' `structural_similarity_index_measure` at `data_range=1`: Gaussian window with sigma 1.5
    (11×11), K1 = .01, K2 = .03, reflected borders, computed per channel and then averaged.

    The arguments and errors are those of [`l1`]; a side shorter than the window is a `ValueError` too.
    """
    _check_pair(prediction, target)
    if min(prediction.shape[2:]) < 11:
        raise ValueError(f"`prediction` must have sides of at least 11 for SSIM, got {list(prediction.shape[2:])}.")
    values = structural_similarity_index_measure(prediction.float(), target.float(), data_range=1.0, reduction="none")
    return values.reshape(prediction.shape[0])


def silhouette(images: torch.Tensor, background_color: torch.Tensor, threshold: float = 0.1) -> torch.Tensor:
    """Find the pixels whose largest channel distance from the background colour exceeds the threshold.

    This works for plain studio backgrounds only. Prediction and truth go through the same rule, so a garment of the
    background's colour is missed in both. `background_color` has shape `[C]`, or `[B, C]` with one colour per image.

    Returns:
        `torch.Tensor`: Boolean, shape `[B, H, W]`.
    Raises:
        ValueError: If a shape does not fit or `threshold` lies outside `[0, 1)`.
    """
    if images.ndim != 4 or background_color.shape not in (images.shape[1:2], images.shape[:2]):
        raise ValueError(
            "`background_color` must have shape [C] or [B, C] for `images` [B, C, H, W], got "
            f"{list(background_color.shape)} for {list(images.shape)}."
        )
    if not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must lie within [0, 1), got {threshold}.")
    color = background_color.to(images).reshape(-1, images.shape[1], 1, 1)
    return (images - color).abs().amax(dim=1) > threshold


def silhouette_iou(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Intersection over union of two silhouettes, boolean `[B, H, W]` (Jaccard, 1901): range `[0, 1]`, higher is
    better, two empty masks give 1. Raise a `ValueError` if a mask is not boolean or the shapes differ.
    """
    _check_mask(prediction, "prediction")
    _check_mask(target, "target", prediction.shape)
    intersection = (prediction & target).sum(dim=(1, 2)).float()
    union = (prediction | target).sum(dim=(1, 2)).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))


def temporal_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the change from each frame to the next: range `[0, 2]`, lower is better. Flicker raises
    it, a constant offset does not.

    It averages `|(x'_{i+1} - x'_i) - (x_{i+1} - x_i)|` over pixels, channels and pairs of consecutive frames, without
    optical flow. Both tensors hold at least two consecutive frames of one video, shape `[F, C, H, W]`.

    Raises:
        ValueError: If the shapes differ, a value lies outside `[0, 1]` or there are fewer than two frames.
    """
    _check_pair(prediction, target)
    if prediction.shape[0] < 2:
        raise ValueError(f"`prediction` must hold at least 2 frames, got {prediction.shape[0]}.")
    return (prediction.float().diff(dim=0) - target.float().diff(dim=0)).abs().mean()


def flicker(frames: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """Mean absolute second difference in time of the static background: range `[0, 2]`, lower is better. A background
    that stands still or changes evenly gives 0.

    It averages `|x_{i+1} - 2 x_i + x_{i-1}|` over channels, pixels of the background and triples of consecutive frames
    of one video. It does not look at the truth: a copied photo gives 0, so read it next to `temporal_error`.

    Args:
        frames (`torch.Tensor`): Consecutive frames of one video, shape `[F, C, H, W]`, range `[0, 1]`, `F >= 3`.
        background (`torch.Tensor`): Boolean, shape `[H, W]`: the pixels that are background in all of these frames.
            An empty mask gives `nan`.
    Raises:
        ValueError: If there are fewer than three frames, a value lies outside `[0, 1]` or `background` does not fit.
    """
    _check_pair(frames, frames)
    if frames.shape[0] < 3:
        raise ValueError(f"`frames` must hold at least 3 frames, got {frames.shape[0]}.")
    _check_mask(background[None], "background", frames[:1, 0].shape)
    return frames.float().diff(n=2, dim=0).abs()[..., background].mean()


def identity_distance(features: torch.Tensor, target_features: torch.Tensor) -> torch.Tensor:
    """Euclidean distance between an image's features and those of the truth, both scaled to length 1: range `[0, 2]`,
    lower is better, equal directions give 0.

    It follows the average Euclidean distance (AED) of Siarohin et al., 2019, but with the features of a CLIP image
    encoder instead of a network for person re-identification. Raise a `ValueError` if the shapes differ or are not
    `[B, D]`.
    """
    if features.ndim != 2 or features.shape != target_features.shape:
        raise ValueError(
            "`features` and `target_features` must have one shape [B, D], got "
            f"{list(features.shape)} and {list(target_features.shape)}."
        )
    normalize = torch.nn.functional.normalize
    return torch.linalg.vector_norm(normalize(features.float()) - normalize(target_features.float()), dim=1)


def frechet_distance(features: torch.Tensor, target_features: torch.Tensor) -> torch.Tensor:
    """Fréchet distance between two sets of features, each taken as a normal distribution: range `[0, inf)`, lower is
    better, equal sets give 0.

    It computes `|m - m'|² + tr(S + S' - 2 (S S')^{1/2})` with sample covariances (`n - 1`), by torchmetrics'
    `FrechetInceptionDistance`. With features of Inception it is FID (Heusel et al., 2017), with features of I3D of 16
    frames each it is FVD (Unterthiner et al., 2018). Smaller sets give larger values: compare sets of one size only.

    Raises:
        ValueError: If the shapes are not `[N, D]` and `[M, D]` with `N` and `M` of at least 2.
    """
    shapes = [list(features.shape), list(target_features.shape)]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"`features` and `target_features` must have shapes [N >= 2, D] and [M >= 2, D], got {shapes}."
        )
    passed_through = torch.nn.Identity()
    passed_through.num_features = features.shape[1]
    distance = FrechetInceptionDistance(feature=passed_through)
    distance.update(target_features.double(), real=True)
    distance.update(features.double(), real=False)
    return distance.compute().float().clamp(min=0)  # rounding can put the 0 of equal sets a little below 0


def mean_and_standard_error(values: torch.Tensor) -> dict[str, float | int | None]:
    """Average independent values `[n]`, one per clip, with the standard error `s / sqrt(n)`, `s` with `n - 1`.

    `nan` entries are left out. Return the `mean` (`None` without values), the `standard_error` (`None` for fewer than
    two values) and `n`, the number of values; raise a `ValueError` if `values` is not 1-dimensional.
    """
    if values.ndim != 1:
        raise ValueError(f"`values` must be 1-dimensional, got shape {list(values.shape)}.")
    values = values[~values.isnan()].double()
    n = values.numel()
    return {
        "mean": values.mean().item() if n else None,
        "standard_error": (values.std() / n**0.5).item() if n > 1 else None,
        "n": n,
    }


def background_color(images: torch.Tensor) -> torch.Tensor:
    """Estimate the colour of a plain background, `[B, C]`: the median of each channel over the outermost pixels."""
    top, bottom, left, right = images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]
    return torch.cat([top, bottom, left, right], dim=-1).float().median(dim=-1).values
