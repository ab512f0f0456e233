# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Alignment of a driving clip's poses with the body in a photo.

`place` moves and scales the whole clip by one similarity. `body` also gives the driver the photo's proportions.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from training.poses.placement import fit_clip, fit_place, fit_silhouettes, ground_heights, resample, surface_pieces
from training.poses.proportions import Proportions, compare, find_axes, plan, redraw


MODES = ("place", "body")


def align_poses(
    poses: Sequence[Image.Image] | torch.Tensor, photo_iuv: Image.Image, mode: str = "body"
) -> list[Image.Image] | torch.Tensor:
    """Align a clip's poses with the body in a photo, whose IUV picture has the size of the result.

    `place` finds one scale and one shift for the clip, without rotation, on the surface that the photo and a frame
    both show: torso, upper legs and head. The frame most like the photo comes onto the photo's place, with its feet on
    the photo's ground; how the driver moves from there stays. If no frame shows the photo's side of the body (such as
    a photo from behind), the silhouettes decide, with a warning. `body` then redraws each limb in the photo's length
    and widths, from the torso outwards. Part codes, U and V stay those of the surface.

    A frame without a body stays empty, and what a frame cuts off stays cut off. Each picture must show one person: the
    poses of several would be mixed.

    Args:
        poses (`Sequence[Image.Image]` or `torch.Tensor`): IUV pictures (R = V, G = U, B = I) of one size; or pose maps
            `[F, 2, H, W]`, which have no part codes: their silhouettes decide in mode `place`, with a warning.
        photo_iuv (`Image.Image`): The photo's IUV picture.
        mode (`str`, *optional*, defaults to `"body"`): `"place"` or `"body"`.
    Returns:
        `list[Image.Image]` or `torch.Tensor`: As many poses of the same kind, of the photo's size.
    Raises:
        ValueError: If `mode` is another, the photo shows nobody, no frame shows a body, or pose maps meet `body`.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {MODES}, got {mode!r}.")
    photo = _read(photo_iuv, "photo_iuv")
    if not photo[..., 2].any():
        raise ValueError("`photo_iuv` must show a body, got a picture without one.")
    if isinstance(poses, torch.Tensor):
        if mode == "body":
            raise ValueError(
                "`mode` must be 'place' for pose maps, which have no part codes to tell the limbs by, got 'body'."
            )
        maps = poses.permute(0, 2, 3, 1).numpy()
        scale, shift = _place_silhouettes([frame.any(-1) for frame in maps], photo, "pose maps have no part codes")
        placed = [resample(frame, scale, shift, *photo.shape[:2]) for frame in maps]
        return torch.from_numpy(np.stack(placed)).permute(0, 3, 1, 2).contiguous()
    frames = [_read(pose, "poses") for pose in poses]
    found = fit_clip([_pieces(frame) for frame in frames], _pieces(photo))
    if found is None:
        reason = "no frame shows the side of the body that the photo shows"
        scale, shift = _place_silhouettes([frame[..., 2] > 0 for frame in frames], photo, reason)
    else:
        scale, shift, agreement = found
        if mode == "body" and "torso" in find_axes(photo):
            return [Image.fromarray(frame) for frame in _give_body(frames, photo, scale, shift, agreement)]
    return [Image.fromarray(resample(frame, scale, shift, *photo.shape[:2])) for frame in frames]


def _read(picture: Image.Image, name: str) -> np.ndarray:
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels[..., 2].max() > 24:
        raise ValueError(
            f"`{name}` must hold RGB IUV pictures with part codes 0..24 in the blue channel, got another."
        )
    return pixels


def _pieces(iuv: np.ndarray) -> np.ndarray:
    return surface_pieces(iuv[..., 2], iuv[..., 1] / 255, iuv[..., 0] / 255)


def _place_silhouettes(masks: list[np.ndarray], photo: np.ndarray, reason: str) -> tuple[float, np.ndarray]:
    if not any(mask.any() for mask in masks):
        raise ValueError("`poses` must show a body in at least one frame, got none.")
    warnings.warn(f"The driver is placed by its silhouette, which is less exact: {reason}.", stacklevel=3)
    return fit_silhouettes(masks, photo[..., 2] > 0)


def _give_body(frames, photo, scale, shift, agreement, rounds: int = 2) -> list[np.ndarray]:
    """Redraw the frames with the photo's proportions, and place them again: with them, they fit it more exactly."""
    size, photo_pieces = photo.shape[:2], _pieces(photo)
    placed = [resample(frame, scale, shift, *size) for frame in frames]
    fits = [fit_place(_pieces(frame), photo_pieces, 1.0)[0] for frame in placed]
    proportions, drawn, seen = Proportions({}, {}, {}, {}), frames, agreement
    for step in range(rounds + 1):
        weights = (seen / seen.max()) ** 4
        proportions = proportions.then(compare(drawn, weights, photo, 1.0 if step else scale))
        drawn = [redraw(frame, plan(frame, proportions, scale, shift), *size) for frame in frames]
        new = [fit_place(_pieces(frame), photo_pieces, 1.0) for frame in drawn]
        seen = agreement * [fit[0] for fit in new]
        best = int(seen.argmax())
        move = new[best][2]
        ground = ground_heights(_pieces(drawn[best]), photo_pieces)
        if ground is not None and step == rounds:
            move[1] = ground[1] - ground[0]
        shift = shift + move
    if new[best][0] < 1.05 * fits[best]:
        return placed
    return [redraw(frame, plan(frame, proportions, scale, shift), *size) for frame in frames]
