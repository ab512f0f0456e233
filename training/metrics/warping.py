# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Warping of a photo by its UV map, without learning, and the parts of a frame's body that the photo shows.

IUV pictures have R = V, G = U, B = I, and 0 where nobody is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from training.metrics.frames import background_color


# A point counts as unseen if no pixel of the photo is within this distance in (U, V), both in [0, 1]. In small
# pictures a limb is five pixels wide, so neighbours are 0.1 apart. On drawn figures that hardly moved, 0.15 marks 1 %
# as unseen.
UV_TOLERANCE = 0.15
# Charts of the two sides of a limb: front, back, and whether U and V of one are 1 minus those of the other.
SIDES = (
    (2, 1, False, False),
    (9, 7, True, True),
    (10, 8, True, True),
    (13, 11, True, False),
    (14, 12, True, False),
    (16, 18, False, False),
    (15, 17, False, False),
    (20, 22, True, True),
    (19, 21, True, True),
)
_OTHER_SIDE = {a: (b, *flips) for front, back, *flips in SIDES for a, b in ((front, back), (back, front))}


@dataclass(frozen=True)
class SurfaceMatch:
    """For each pixel of a frame, the pixel of a photo that shows the nearest point of the body.

    All fields have shape `[H, W]`. `is_body` says where the frame has a body. `index` counts the photo's pixels row by
    row and is -1 where the photo shows nothing of that limb. `distance` is measured in (U, V) within the same part; it
    is infinite where the photo does not show that part.
    """

    is_body: torch.Tensor
    index: torch.Tensor
    distance: torch.Tensor

    @property
    def is_unseen(self) -> torch.Tensor:
        """The pixels of the body, `[H, W]`, for which the photo shows no point within `UV_TOLERANCE`."""
        return self.is_body & (self.distance > UV_TOLERANCE)


def _read_iuv(iuv: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(np.asarray(iuv.convert("RGB")).copy())
    return pixels[..., 2].long().flatten(), pixels[..., [1, 0]].reshape(-1, 2).float() / 255


def match_surface(iuv: Image.Image, photo_iuv: Image.Image, chunk_size: int = 4096) -> SurfaceMatch:
    """Find for each pixel of a frame's body the pixel of the photo with the nearest (U, V) on the same part.

    A part that the photo does not show at all is looked for on the other side of its limb (front for back), at the
    mirrored (U, V). The two IUV pictures may differ in size; `chunk_size` pixels are compared at a time.
    """
    part, uv = _read_iuv(iuv)
    photo_part, photo_uv = _read_iuv(photo_iuv)
    index = torch.full(part.shape, -1)
    distance = torch.full(part.shape, torch.inf)
    for name in part.unique().tolist():
        wanted = (part == name).nonzero().flatten() if name else part.new_empty(0)
        shown, points = photo_part == name, uv[wanted]
        is_same = bool(shown.any())
        if not is_same and name in _OTHER_SIDE:
            other, *flips = _OTHER_SIDE[name]
            shown, points = photo_part == other, torch.where(torch.tensor(flips), 1 - points, points)
        candidates = shown.nonzero().flatten()
        if len(candidates) == 0:
            continue
        for pixels, targets in zip(wanted.split(chunk_size), points.split(chunk_size), strict=True):
            # The faster way by matrix products rounds 0 to 2e-4.
            distances = torch.cdist(targets, photo_uv[candidates], compute_mode="donot_use_mm_for_euclid_dist")
            nearest = distances.min(dim=1)
            index[pixels] = candidates[nearest.indices]
            if is_same:
                distance[pixels] = nearest.values
    shape = iuv.height, iuv.width
    return SurfaceMatch((part > 0).reshape(shape), index.reshape(shape), distance.reshape(shape))


def take_from_photos(
    photos: Sequence[tuple[Image.Image, Image.Image]], iuv: Image.Image
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the body of a frame from several photos of the same size, each given with its IUV picture.

    Returns the pixels `[3, H, W]` in `[0, 1]`, each from the photo with the nearest point of the body, and the
    distances `[H, W]` of these points in (U, V), as in [`SurfaceMatch`].
    """
    matches = [match_surface(iuv, photo_iuv) for _, photo_iuv in photos]
    warped = torch.stack([warp_photo(*photo, match) for photo, match in zip(photos, matches)])
    nearest = torch.stack([match.distance for match in matches]).min(dim=0)
    return warped.gather(0, nearest.indices.expand(1, 3, -1, -1))[0], nearest.values


def inner_body(iuv: Image.Image) -> Image.Image:
    """Return an IUV picture without the body's outermost pixels, whose colours mix with those of what is behind it."""
    pixels = torch.from_numpy(np.asarray(iuv.convert("RGB")).copy())
    outside = (pixels[..., 2] == 0).float()
    near_outside = torch.nn.functional.max_pool2d(outside[None, None], 3, stride=1, padding=1)[0, 0] > 0
    pixels[near_outside] = 0
    return Image.fromarray(pixels.numpy())


def warp_photo(photo: Image.Image, photo_iuv: Image.Image, match: SurfaceMatch) -> torch.Tensor:
    """Paint a frame's body with the photo's pixels of the same points (texture transfer).

    Outside the frame's body the photo's own pixels stay, except the photo's body: it gets the background's colour, or
    the person would be there twice. Hems and hair, which no IUV covers, thus stay in place. The background's colour
    everywhere would be worse on them, and it only works for plain backgrounds. A limb that the photo does not show at
    all gets the mean colour of the photo's body.

    Returns:
        `torch.Tensor`: Shape `[3, H, W]`, range `[0, 1]`.
    Raises:
        ValueError: If the RGB `photo`, its IUV and the frame's `match` differ in size.
    """
    shape = tuple(match.index.shape)
    sizes = [photo.size[::-1], photo_iuv.size[::-1], shape]
    if len(set(sizes)) > 1:
        raise ValueError(f"`photo`, `photo_iuv` and `match` must have one size (height, width), got {sizes}.")
    pixels = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1).float() / 255
    is_photo_body = _read_iuv(photo_iuv)[0].reshape(shape) > 0
    warped = pixels.clone()
    warped[:, is_photo_body] = background_color(pixels[None])[0][:, None]
    painted = match.is_body & (match.index >= 0)
    warped[:, painted] = pixels.flatten(1)[:, match.index[painted]]
    unknown = match.is_body & (match.index < 0)
    if is_photo_body.any():
        warped[:, unknown] = pixels[:, is_photo_body].mean(dim=1, keepdim=True)
    return warped
