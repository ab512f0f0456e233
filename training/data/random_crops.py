# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Random crops that a target and all its poses share, and reading pictures, labels and pose maps on a canvas.

Only position and scale are random. Aspect ratio and colours stay, and nothing is mirrored (mirrored UV is not valid
UV). The functions of `pipeline_dreampose` place a crop on the canvas.

Legend: `H W` pixels of the canvas, `h w` latent cells.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from pipeline_dreampose import fit_image, fit_pose_maps, iuv_to_pose_map, resize_pose_maps


def shown_box(
    size: tuple[int, int],
    canvas: tuple[int, int],
    fit: str = "whole",
    min_crop_scale: float = 1.0,
    draws: Sequence[float] = (1.0, 0.5, 0.5),
) -> tuple[int, int, int, int]:
    """Return the part of a picture that the canvas shows.

    Args:
        size (`tuple[int, int]`): Width and height of the picture.
        canvas (`tuple[int, int]`): Width and height of the canvas.
        fit (`str`, *optional*, defaults to `"whole"`):
            The part at scale 1: `"whole"`, the whole picture, or `"crop"`, its middle that fills the canvas.
        min_crop_scale (`float`, *optional*, defaults to 1.0): Smallest scale of the part, in (0, 1].
        draws (`Sequence[float]`, *optional*, defaults to the largest part in the middle):
            Three numbers in [0, 1]: the scale between `min_crop_scale` and 1, and how far right and down the part is.
    Returns:
        `tuple[int, int, int, int]`: Left, top, right and bottom, for `PIL.Image.Image.crop`.
    """
    ratios = [side / canvas_side for side, canvas_side in zip(size, canvas)]
    unit = max(ratios) if fit == "whole" else min(ratios)
    unit *= min_crop_scale + (1 - min_crop_scale) * draws[0]
    # The largest box inside the picture: outside it there are no poses, and colours would repeat.
    width, height = (max(1, min(limit, round(side * unit))) for side, limit in zip(canvas, size))
    left, top = (int(draw * (limit - side) + 0.5) for draw, side, limit in zip(draws[1:], (width, height), size))
    return left, top, left + width, top + height


def read_levels(image: Image.Image, box: tuple[int, int, int, int], canvas: tuple[int, int]) -> torch.Tensor:
    """Fit the part of a picture in `box` (from [`shown_box`]) to the canvas (`W`, `H`), in 8 bit.

    Copying bytes dominates the cost of moving a picture from a data worker to the device; float32 pixel values take
    four times as many.

    Returns:
        `torch.Tensor`: Shape `(3, H, W)`, uint8. [`to_pixel_values`] turns it into the result of `fit_image`.
    """
    part = image.crop(box)
    if part.mode == "RGB" and part.size == canvas and not part.has_transparency_data:
        return torch.from_numpy(np.array(part)).permute(2, 0, 1)
    return ((fit_image(part, canvas[1], canvas[0]) + 1) * 127.5).round().byte()


def to_pixel_values(levels: torch.Tensor) -> torch.Tensor:
    """Convert 8-bit levels, shape `(..., 3, H, W)`, to float32 pixel values in `[-1, 1]`."""
    return levels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


@lru_cache(maxsize=16)
def _pixels_of_cells(
    box_size: tuple[int, int], canvas: tuple[int, int], cells: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row and column of the pixel shown by each latent cell, and whether the cell shows a pixel of the part."""
    columns, rows = torch.meshgrid(*(torch.arange(1.0, side + 1) for side in box_size), indexing="xy")
    # Fit the pixels' numbers like a pose map to see which pixel each cell shows; 0 is outside the part.
    maps = fit_pose_maps(torch.stack([rows, columns])[None], canvas[1], canvas[0])
    numbers = resize_pose_maps(maps, cells[1], cells[0])[0].long().numpy()
    return (*np.maximum(numbers - 1, 0), numbers[0] > 0)


def _read_nearest(
    picture: Image.Image, box: tuple[int, int, int, int], canvas: tuple[int, int], cells: tuple[int, int]
) -> np.ndarray:
    """Return the values of the pixels that the cells show, and zeros where they show none."""
    left, top, right, bottom = box
    rows, columns, is_inside = _pixels_of_cells((right - left, bottom - top), canvas, cells)
    values = np.asarray(picture)[rows + top, columns + left]
    values[~is_inside] = 0
    return values


def read_labels(picture: Image.Image, box: tuple[int, int, int, int], canvas: tuple[int, int]) -> Image.Image:
    """Fit the part of a picture of codes (such as IUV) in `box` to the canvas (`W`, `H`) without mixing codes.

    The result lines up with [`read_levels`]: nearest neighbour, and zeros where `read_levels` extends the border.
    `picture` has mode L or RGB, and so has the result.
    """
    part = picture.crop(box)
    if part.size == canvas:
        return part
    return Image.fromarray(_read_nearest(picture, box, canvas, canvas))


def read_cells(
    iuv: Image.Image, box: tuple[int, int, int, int], canvas: tuple[int, int], cells: tuple[int, int]
) -> torch.Tensor:
    """Return the pose map of the part of an IUV picture (V, U, I) in `box`, shape `(2, h, w)`, range `[0, 1]`.

    It equals fitting the whole map to the canvas (`W`, `H`) and resizing it to the latent `cells` (`w`, `h`), but
    reads only the pixels that are kept. Raise a `ValueError` if `iuv` is not RGB.
    """
    if iuv.mode != "RGB":
        raise ValueError(f"`iuv` must be an RGB picture, got mode {iuv.mode!r}.")
    return iuv_to_pose_map(_read_nearest(iuv, box, canvas, cells))
