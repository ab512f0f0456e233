# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Which part of a picture a canvas shows: one draw for a target and all its poses, so that they keep to each other.

Only position and scale are drawn. The aspect stays, colours stay, nothing is mirrored (mirrored UV is not UV). How a
part is laid on the canvas is the plug-in's matter.

Legend: `H W` pixels of the canvas, `h w` latent cells.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from pipeline_dreampose import fit_image, fit_pose_maps, iuv_to_pose_map, resize_pose_maps


FITS = ("whole", "crop")


def shown_box(
    size: tuple[int, int],
    canvas: tuple[int, int],
    fit: str = "whole",
    min_crop_scale: float = 1.0,
    draws: Sequence[float] = (1.0, 0.5, 0.5),
) -> tuple[int, int, int, int]:
    """The part of a picture that a canvas shows.

    Args:
        size (`tuple[int, int]`): Width and height of the picture.
        canvas (`tuple[int, int]`): Width and height of the canvas.
        fit (`str`, *optional*, defaults to `"whole"`):
            What the canvas shows at scale 1: `"whole"`, all of the picture, or `"crop"`, as much as fills it.
        min_crop_scale (`float`, *optional*, defaults to 1.0): The smallest scale of what the canvas shows, in (0, 1].
        draws (`Sequence[float]`, *optional*, defaults to the largest part in the middle):
            Three numbers in [0, 1]: the scale between `min_crop_scale` and 1, and how far right and down the part is.
    Returns:
        `tuple[int, int, int, int]`: Left, top, right and bottom, as `PIL.Image.Image.crop` takes them.
    """
    ratios = [side / canvas_side for side, canvas_side in zip(size, canvas)]
    unit = max(ratios) if fit == "whole" else min(ratios)
    unit *= min_crop_scale + (1 - min_crop_scale) * draws[0]
    # As much of the picture as the canvas has room for: its border, where poses end and colours go on, is never cut.
    width, height = (max(1, min(limit, round(side * unit))) for side, limit in zip(canvas, size))
    left, top = (int(draw * (limit - side) + 0.5) for draw, side, limit in zip(draws[1:], (width, height), size))
    return left, top, left + width, top + height


def read_levels(image: Image.Image, box: tuple[int, int, int, int], canvas: tuple[int, int]) -> torch.Tensor:
    """What the canvas shows of a part of a picture, in 8 bit.

    Of what it costs to bring a picture from a loader's process to the device, its bytes are the most, and pixel values
    have four times as many.

    Args:
        image (`PIL.Image.Image`): In any mode.
        box (`tuple[int, int, int, int]`): The part that is shown, from [`shown_box`].
        canvas (`tuple[int, int]`): `W` and `H`.
    Returns:
        `torch.Tensor`: Shape `(3, H, W)`, uint8; [`to_pixel_values`] makes of it what `fit_image` gives.
    """
    part = image.crop(box)
    if part.mode == "RGB" and part.size == canvas and not part.has_transparency_data:
        return torch.from_numpy(np.array(part)).permute(2, 0, 1)
    return ((fit_image(part, canvas[1], canvas[0]) + 1) * 127.5).round().byte()


def to_pixel_values(levels: torch.Tensor) -> torch.Tensor:
    """Levels of 8 bit, shape `(..., 3, H, W)` -> pixel values in `[-1, 1]`, float32."""
    return levels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


@lru_cache(maxsize=16)
def _pixels_of_cells(
    box_size: tuple[int, int], canvas: tuple[int, int], cells: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the pixel that each latent cell shows of a part of `box_size`, and whether it shows any."""
    columns, rows = torch.meshgrid(*(torch.arange(1.0, side + 1) for side in box_size), indexing="xy")
    # The pixels' own numbers, sent the way that poses go, come out where the pixels do; 0 is what lies around.
    maps = fit_pose_maps(torch.stack([rows, columns])[None], canvas[1], canvas[0])
    numbers = resize_pose_maps(maps, cells[1], cells[0])[0].long().numpy()
    return (*np.maximum(numbers - 1, 0), numbers[0] > 0)


def _read_nearest(
    picture: Image.Image, box: tuple[int, int, int, int], canvas: tuple[int, int], cells: tuple[int, int]
) -> np.ndarray:
    """The values at the pixels that the cells show, zeros where they show none."""
    left, top, right, bottom = box
    rows, columns, is_inside = _pixels_of_cells((right - left, bottom - top), canvas, cells)
    values = np.asarray(picture)[rows + top, columns + left]
    values[~is_inside] = 0
    return values


def read_labels(picture: Image.Image, box: tuple[int, int, int, int], canvas: tuple[int, int]) -> Image.Image:
    """What the canvas shows of a part of a picture whose values mean something each and cannot be mixed, as IUV.

    It keeps to the pictures of [`read_levels`]: nearest neighbour, and zeros where their borders are continued.

    Args:
        picture (`PIL.Image.Image`): In mode L or RGB.
        box (`tuple[int, int, int, int]`): The part that is shown, from [`shown_box`].
        canvas (`tuple[int, int]`): `W` and `H`.
    Returns:
        `PIL.Image.Image`: Of the canvas's size, in the mode of `picture`.
    """
    part = picture.crop(box)
    if part.size == canvas:
        return part
    return Image.fromarray(_read_nearest(picture, box, canvas, canvas))


def read_cells(
    iuv: Image.Image, box: tuple[int, int, int, int], canvas: tuple[int, int], cells: tuple[int, int]
) -> torch.Tensor:
    """The pose map of a part of an IUV picture, at latent size.

    Equal to fitting the whole map and resizing it, but only the pixels that are kept are looked at.

    Args:
        iuv (`PIL.Image.Image`): RGB, R = V, G = U, B = I.
        box (`tuple[int, int, int, int]`): The part that is shown, from [`shown_box`].
        canvas (`tuple[int, int]`): `W` and `H`.
        cells (`tuple[int, int]`): `w` and `h`.
    Returns:
        `torch.Tensor`: Shape `(2, h, w)`, range `[0, 1]`.
    Raises:
        ValueError: If `iuv` is no IUV picture.
    """
    if iuv.mode != "RGB":
        raise ValueError(f"`iuv` must be an RGB picture, got mode {iuv.mode!r}.")
    return iuv_to_pose_map(_read_nearest(iuv, box, canvas, cells))
