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

from pipeline_dreampose import align_pose_maps, fit_place, most_alike, place_driver, read_iuv, resample, surface_pieces
from training.poses.pose_files import show_several_people
from training.poses.proportions import Proportions, compare, plan, redraw


MODES = ("place", "body")


def align_poses(
    poses: Sequence[Image.Image] | torch.Tensor, photo_iuv: Image.Image, mode: str
) -> list[Image.Image] | torch.Tensor:
    """Align a clip's poses with the body in a photo, whose IUV picture has the size of the result.

    `place` finds one scale and one shift for the clip, without rotation, on the surface that the photo and a frame
    both show: torso, upper legs and head. The frame most like the photo comes onto the photo's place, with its feet on
    the photo's ground; how the driver moves from there stays. If no frame shows the photo's side of the body (such as
    a photo from behind), the silhouettes decide, with a warning. `body` then redraws each limb in the photo's length
    and widths, from the torso outwards, and what a limb hid and no longer hides in the nearest values of the surface.
    Part codes, U and V stay those of the surface. The motion is scaled by the height of the head, in which people
    differ least.

    A frame without a body stays empty, and what a frame cuts off stays cut off. A frame whose torso is hidden is only
    placed. Each picture should show one person: several are aligned as if they were one, with a warning.

    Args:
        poses (`Sequence[Image.Image]` or `torch.Tensor`): IUV pictures (R = V, G = U, B = I) of one size; or pose maps
            `[F, 2, H, W]`, which have no part codes: their silhouettes decide in mode `place`, with a warning.
        photo_iuv (`Image.Image`): The photo's IUV picture.
        mode (`str`): `"place"` or `"body"`.
    Returns:
        `list[Image.Image]` or `torch.Tensor`: As many poses of the same kind, of the photo's size.
    Raises:
        ValueError: If `mode` is another, the photo shows nobody, no frame shows a body, or pose maps meet `body`.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {MODES}, got {mode!r}.")
    photo = read_iuv(photo_iuv, "photo_iuv")
    if isinstance(poses, torch.Tensor):
        if mode == "body":
            raise ValueError(
                "`mode` must be 'place' for pose maps, which have no part codes to tell the limbs by, got 'body'."
            )
        return align_pose_maps(poses, photo_iuv).to(poses.device)
    frames = [read_iuv(pose, f"poses[{index}]") for index, pose in enumerate(poses)]
    for name, pictures in (("photo_iuv", [photo_iuv]), ("poses", poses)):
        if show_several_people(pictures):
            warnings.warn(f"`{name}` shows several people, who are aligned as if they were one.", stacklevel=2)
    scale, shift, agreement = place_driver(frames, photo)
    if mode == "body" and agreement is not None:
        return [Image.fromarray(frame) for frame in _give_body(frames, photo, scale, shift, agreement)]
    return [Image.fromarray(resample(frame, scale, shift, *photo.shape[:2])) for frame in frames]


def _pieces(iuv: np.ndarray) -> np.ndarray:
    return surface_pieces(iuv[..., 2], iuv[..., 1] / 255, iuv[..., 0] / 255)


def _give_body(frames, photo, scale, shift, agreement, rounds: int = 2) -> list[np.ndarray]:
    """Redraw the frames with the photo's proportions, which are measured on the frames most like the photo.

    They are measured again on the redrawn frames, and the place too. If the redrawn driver does not fit the photo
    better than the placed one, the two bodies differ by less than can be measured, and the placed frames are returned.
    The scale of the motion is that of the heads, in whose height people differ least.
    """
    size, photo_pieces = photo.shape[:2], _pieces(photo)

    def fit(drawn):
        return [fit_place(_pieces(frame), photo_pieces, 1.0) for frame in drawn]

    def draw(complete):
        plans = [plan(frame, proportions, scale, shift) for frame in frames]
        return [
            redraw(frame, pieces, *size, complete) if pieces else resample(frame, scale, shift, *size)
            for frame, pieces in zip(frames, plans, strict=True)
        ]

    placed, best = [resample(frame, scale, shift, *size) for frame in frames], most_alike(agreement)
    weights = (agreement / agreement.max()) ** 4
    scale = scale * compare(frames, weights, photo, scale).lengths.get("head", 1.0)
    shift = fit_place(_pieces(frames[best]), photo_pieces, scale)[2]
    proportions, drawn = Proportions({}, {}, {}, {}), frames
    for step in range(rounds + 1):
        proportions = proportions.then(compare(drawn, weights, photo, 1.0 if step else scale))
        drawn = draw(complete=False)
        fits = fit(drawn)
        agrees = np.array([fitted[0] for fitted in fits])
        if agrees.max() == 0:
            return placed
        seen = agreement * agrees
        if seen.max() > 0:
            weights = (seen / seen.max()) ** 4
        # Once the bodies are alike, another frame may turn out to be the photo's; of similar ones, the first.
        best = int(np.argmax(agrees >= 0.8 * agrees.max()))
        shift = shift + fits[best][2]
    return draw(complete=True) if fits[best][0] > 1.05 * fit(placed[best : best + 1])[0][0] else placed
