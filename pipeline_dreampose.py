# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0 (http://www.apache.org/licenses/LICENSE-2.0)
"""DreamPose (arXiv:2304.06025) as a single-file diffusers pipeline that animates a photo with a pose sequence.

Axes in comments and docstrings: `B` videos, `P` photos of one subject, `F` frames, `T` image tokens, `D` token width,
`C` latent channels, `H W` pixels, `h w` latent cells, `r` frames on each side of the centre of a pose window.
"""

import copy
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import numbers
import operator
import os
import re
import reprlib
import sys
import warnings
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from diffusers.utils import import_utils
from transformers.utils import is_torchvision_available, is_torchvision_v2_available


# diffusers and transformers import torchvision if it is installed, and fail with an obscure error if it is a build for
# another torch. They work without torchvision, so a broken one is hidden from them.
try:
    if importlib.util.find_spec("torchvision"):
        importlib.import_module("torchvision")
except Exception as error:  # a broken build may raise anything
    sys.modules["torchvision"] = None
    import_utils._torchvision_available = False  # diffusers cannot be asked to look again, transformers can
    is_torchvision_available.cache_clear()
    is_torchvision_v2_available.cache_clear()
    warnings.warn(f"torchvision is ignored because it does not fit torch {torch.__version__}: {error}")

import torch.nn.functional as F
from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE, LoraBaseMixin, _fetch_state_dict
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionModel


logger = logging.get_logger(__name__)  # pylint: disable=invalid-name

# What the pipeline reads from each component, or from its config.
_SETTINGS = {
    "vae": ("latent_channels", "scaling_factor", "block_out_channels"),
    "unet": ("in_channels", "out_channels", "block_out_channels", "cross_attention_dim"),
    "image_encoder": ("hidden_size", "image_size", "patch_size"),
    "feature_extractor": ("image_mean", "image_std", "do_center_crop"),
    "adapter": ("image_embed_dim", "num_image_tokens", "latent_channels"),
}

# Arguments of a call whose default is in the config of the pipeline.
_DEFAULTS = ("height", "width", "num_inference_steps", "image_guidance_scale", "pose_guidance_scale", "guidance_stop")


def _short(value: Any) -> str:
    """Return `repr(value)`, shortened for an error message."""
    try:
        return reprlib.repr(value)
    except Exception:  # e.g. an int of thousands of digits
        return f"a value of {type(value)}"


def _check(is_valid: Any, rule: str, got: Any) -> None:
    """Raise a `ValueError` that says the rule and what was got instead, unless it is followed."""
    if not is_valid:
        raise ValueError(f"{rule}; got {got}.")


def _layers(model: Any) -> Iterable[nn.Module]:
    """Return all layers of a model, of none if it wraps something else, such as a TensorRT engine."""
    return model.modules() if isinstance(model, nn.Module) else ()


def _is_dense(value: Any) -> bool:
    """Return whether this is a tensor of plain real numbers, in memory and without gaps."""
    is_strided = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested
    return is_strided and not (value.is_meta or value.is_complex() or value.is_quantized)


def _to_array(value: np.ndarray | torch.Tensor, name: str, limits: tuple[float, float], rule: str) -> np.ndarray:
    """Return real numbers, 8 bit or within limits, as a native array; a floating-point tensor becomes float32."""
    if isinstance(value, torch.Tensor):
        got = f"{value.dtype}, {value.layout} on {value.device}"
        _check(_is_dense(value), f"`{name}` must be a dense tensor of real numbers", got)
        value = (value.float() if value.is_floating_point() else value).detach().cpu().resolve_neg().numpy()
    is_real = value.dtype.kind in "biuf" and value.size > 0
    _check(is_real, f"`{name}` must hold real numbers, at least one", f"{value.dtype} {value.shape}")
    low, high = value.min(), value.max()  # NaN if any value is NaN
    is_inside = value.dtype == np.uint8 or (limits[0] <= low and high <= limits[1])
    _check(is_inside, f"`{name}` must {rule}", f"{value.dtype} between {low} and {high}")
    return np.require(value, value.dtype.newbyteorder("="), "CW")


def _fit(source_size: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Scale a source to fit whole and centred into a canvas; return its new size and the left to bottom padding."""
    scale = min(side / source for source, side in zip(source_size, size))
    height, width = (min(side, max(1, round(source * scale))) for source, side in zip(source_size, size))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return (height, width), (left, size[1] - width - left, top, size[0] - height - top)


def _load(image: Image.Image, argument: str = "image") -> Image.Image:
    """Decode the pixels now, so that a broken file is reported before any model runs."""
    _check(0 not in image.size, f"`{argument}` must have at least one pixel", f"{image.width} x {image.height}")
    try:
        image.load()
    # Pillow raises SyntaxError for some broken PNG files, and ValueError or AttributeError for closed ones
    except (OSError, SyntaxError, ValueError, AttributeError) as error:
        name = getattr(image, "filename", "") or "a stream"
        raise ValueError(f"`{argument}` must be readable; {name} is not: {error}.") from error
    return image


def to_rgb(image: Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    """Convert one picture, of any form that [`fit_image`] takes, to 8-bit RGB; lay transparent areas over white."""
    if isinstance(image, (np.ndarray, torch.Tensor)):
        is_tensor = isinstance(image, torch.Tensor)
        image = _to_array(image, "image", (0, 1), "be 8 bit, or hold finite values in [0, 1]")
        image = np.moveaxis(image, 0, -1) if is_tensor and image.ndim == 3 else image
        rule = "`image` must have three colour channels: `(H, W, 3)` as an array, `(3, H, W)` as a tensor"
        _check(image.ndim == 3 and image.shape[-1] == 3, rule, f"{image.shape} (channels last)")
        return Image.fromarray(image if image.dtype == np.uint8 else (image * 255).round().astype(np.uint8))
    _check(isinstance(image, Image.Image), "`image` must be a PIL image, an array or a tensor", type(image))
    _load(image)
    with suppress(Exception):  # viewers ignore broken EXIF data
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # `convert` would clip the values instead of scaling them
        most = 255 if image.mode == "F" else 65535
        levels = _to_array(np.asarray(image), "image", (0, most), f"hold values from 0 to {most} in mode {image.mode}")
        levels = (levels * 255).round() if image.mode == "F" and levels.max() <= 1 else levels
        levels = levels // 257 if image.mode not in ("I", "F") or levels.max() > 255 else levels
        image = Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")  # La only becomes LA
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit_image(image: Image.Image | np.ndarray | torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Fit a photo whole and centred into a canvas, neither stretched nor cut, and repeat its border pixels outwards.

    The photo is a PIL image of any mode (EXIF rotation is applied, transparent areas become white), an array
    `(H, W, 3)` or a tensor `(3, H, W)`. Arrays and tensors hold 8-bit values or values in `[0, 1]`, which are rounded
    to 8 bits. White is 65535 in 16-bit pictures, so 12-bit levels must be scaled up before; it is 1 or 255 in pictures
    of mode F. Others raise a `ValueError`. The result is `(3, height, width)`: 8-bit levels in `[-1, 1]`, as float32.
    """
    image = to_rgb(image)
    (fitted_height, fitted_width), (left, right, top, bottom) = _fit((image.height, image.width), (height, width))
    if image.size != (fitted_width, fitted_height):
        image = image.resize((fitted_width, fitted_height), Image.Resampling.LANCZOS)
    canvas = torch.from_numpy(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
    return canvas.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


def iuv_to_pose_map(image: Image.Image | np.ndarray, name: str = "image") -> torch.Tensor:
    """Convert one DensePose IUV image to a pose map `(2, H, W)`: U, then V, in `[0, 1]`, zero outside the body.

    The image is RGB, or an 8-bit array `(H, W, 3)`, with R = V, G = U and B = I: part code 0 for the background, 1..24
    for body parts. Others raise a `ValueError` that calls it `name`.
    """
    v, u, parts = torch.from_numpy(read_iuv(image, name).copy()).unbind(-1)
    return torch.stack([u, v]).float() / 255.0 * (parts > 0)


def read_iuv(image: Any, name: str) -> np.ndarray:
    """Return an IUV image as an 8-bit array `(H, W, 3)`. Raise a `ValueError` that calls it `name` if it is none."""
    if isinstance(image, Image.Image):
        rule = f"`{name}` must be an RGB IUV picture (R = V, G = U, B = I)"
        _check(image.mode == "RGB", rule, f"mode {image.mode!r}")
        image = np.asarray(_load(image, name))
    got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
    is_iuv = getattr(image, "dtype", None) == np.uint8 and image.ndim == 3 and image.shape[-1] == 3 and image.size
    _check(is_iuv, f"`{name}` must be an RGB picture or an 8 bit array `(H, W, 3)` of V, U and I", got)
    if image[..., 2].max() > 24:
        got = f"{image[..., 2].max()}. {why_not_iuv(image)}"
        raise ValueError(f"`{name}` must hold DensePose part codes 0..24 in its blue channel; got {got}")
    return image


def why_not_iuv(image: np.ndarray) -> str:
    """Explain in a sentence why the blue channel of an 8-bit array `(H, W, 3)` holds no part codes."""
    background = np.median(image[:2].reshape(-1, 3), axis=0)
    are_codes = [background.max() == 0 and c.max() <= 24 and len(np.unique(c)) > 2 for c in np.moveaxis(image, -1, 0)]
    if are_codes[0]:
        return "Its red channel holds them (order I, U, V): training/extract_poses.py --channel_order iuv turns it."
    if are_codes[1]:
        return "Its green channel holds them: put V into its red, U into its green and I into its blue channel."
    for name, color in {"viridis": (68, 1, 84), "parula": (53, 42, 135)}.items():
        if np.abs(background - color).max() <= 12:  # a lossy codec changes it by less
            return f"A part-colour picture ({name}) no longer contains U and V: extract the poses again, as IUV."
    if background.max() <= 12:
        return "A lossy format such as JPEG has mixed its parts, or it is no IUV picture: extract the poses as PNG."
    return "It is no IUV picture: extract the poses again, as IUV."


def _check_pose_maps(pose_maps: torch.Tensor) -> None:
    got = tuple(pose_maps.shape) if isinstance(pose_maps, torch.Tensor) else type(pose_maps)
    is_clip = isinstance(got, tuple) and len(got) == 4 and got[1] == 2
    _check(is_clip, "`pose_maps` must be a tensor of shape `(F, 2, H, W)`", got)


def fit_pose_maps(pose_maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Fit pose maps `(F, 2, H, W)` into a canvas as [`fit_image`] fits the photo; nearest neighbour, zeros around."""
    _check_pose_maps(pose_maps)
    fitted_size, padding = _fit(pose_maps.shape[-2:], (height, width))
    return F.pad(resize_pose_maps(pose_maps, *fitted_size), padding)


def resize_pose_maps(pose_maps: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Resize pose maps `(F, 2, H, W)` to `(F, 2, h, w)` by nearest neighbour, as DreamPose's released code does."""
    _check_pose_maps(pose_maps)
    return pose_maps if pose_maps.shape[-2:] == (h, w) else F.interpolate(pose_maps, size=(h, w), mode="nearest")


def pose_window(pose_maps: torch.Tensor, index: int, radius: int = 2) -> torch.Tensor:
    """Stack the pose maps `(F, 2, h, w)` around frame `index` along the channels (DreamPose, arXiv:2304.06025).

    `radius` is the number of frames on each side. Past either end, the border frame is repeated. The result has shape
    `(2 * (2 * radius + 1), h, w)`, earliest frame first, U before V.
    """
    _check_pose_maps(pose_maps)
    num_frames = pose_maps.shape[0]
    _check(0 <= index < num_frames, f"`index` must be at least 0 and less than the {num_frames} frames", index)
    _check(radius >= 0, "`radius` must be at least 0", radius)
    neighbours = [min(max(i, 0), num_frames - 1) for i in range(index - radius, index + radius + 1)]
    return pose_maps[neighbours].flatten(0, 1)


# examples/community: left out
# (`make community` leaves such parts out of the file for diffusers' own repository.)

# Place of a driver's poses on the body in a photo: one scale and one shift, found on the surface of the two bodies. A
# piece of surface is a bin of U and V of one body part. A picture's pieces are an array `[25, 12, 12, 5]`: how many
# pixels show a piece, and the sums of their x, y, U and V.
_STEADY_PARTS = (1, 2, 7, 8, 9, 10, 23, 24)  # torso, upper legs and head tell place and size; arms and lower legs move
_BINS = 12


def surface_pieces(parts: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Sum up which pieces of the surface a picture shows, and where; `u` and `v` lie in `[0, 1]`."""
    y, x = np.nonzero(parts)
    values = np.ones(x.size), x + 0.5, y + 0.5, u[y, x], v[y, x]
    bins = [np.minimum((value * _BINS).astype(int), _BINS - 1) for value in values[3:]]
    piece = np.ravel_multi_index((parts[y, x].astype(int), *bins), (25, _BINS, _BINS))
    sums = [np.bincount(piece, value, 25 * _BINS**2) for value in values]
    return np.stack(sums, axis=-1).reshape(25, _BINS, _BINS, 5)


def match_pieces(pieces: np.ndarray, photo: np.ndarray) -> tuple[np.ndarray, ...]:
    """Match the pieces that a frame and a photo show.

    Returned are the part `[N]` of `N` pieces, the place (x, y) in the frame and in the photo, `[N, 2]` each, the mean
    U and V in the photo, `[N, 2]`, and the photo's pixels `[N]`. The place in the frame is that of the photo's mean U
    and V, so that pieces of a few pixels match exactly.
    """
    found = []
    for part in np.flatnonzero((pieces[..., 0].any((1, 2))) & (photo[..., 0].any((1, 2)))):
        here, there = (of[part].reshape(-1, 5) for of in (pieces, photo))
        count, pixels = here[:, :1], there[:, :1]
        both = ((count > 0) & (pixels > 0))[:, 0]
        here, there = here[:, 1:] / np.maximum(count, 1), there[:, 1:] / np.maximum(pixels, 1)
        surface = np.concatenate([here[:, 2:], np.ones_like(count)], axis=-1)
        slope = np.linalg.lstsq(surface * count**0.5, here[:, :2] * count**0.5, rcond=None)[0][:2]
        places = here[both, :2] + (there - here)[both, 2:] @ slope
        found.append((np.full(both.sum(), part), places, there[both, :2], there[both, 2:], pixels[both, 0]))
    empty = [(np.zeros(0), *[np.zeros((0, 2))] * 3, np.zeros(0))]
    return tuple(np.concatenate(values) for values in zip(*(found or empty)))


def fit_place(pieces: np.ndarray, photo: np.ndarray, scale: float | None = None) -> tuple[float, float, np.ndarray]:
    """Fit the scale, unless it is given, and the shift (x, y) that bring a frame's steady parts onto the photo's.

    Before both, the agreement in pose and side is returned, in `[0, 1]`: 0 where frame and photo share too little.
    """
    part, here, there, _, pixels = match_pieces(pieces, photo)
    steady = np.isin(part, _STEADY_PARTS)
    if steady.sum() < 8:
        return 0.0, scale or 1.0, np.zeros(2)
    y = photo[..., 2].sum((1, 2)) / np.maximum(photo[..., 0].sum((1, 2)), 1)
    tolerance = 0.25 + 0.02 * np.ptp(y[y > 0])
    weight, given = pixels * steady, scale
    for _ in range(20):  # weights of Geman and McClure: pieces that moved on their own lose theirs
        share = (weight / weight.sum())[:, None]
        centre, photo_centre = (share * here).sum(0), (share * there).sum(0)
        moved = share * (here - centre)
        scale = given or max((moved * (there - photo_centre)).sum() / max((moved * (here - centre)).sum(), 1e-9), 1e-3)
        shift = photo_centre - scale * centre
        error = np.square(scale * here + shift - there).sum(-1) / tolerance**2
        weight = pixels * steady / np.square(1 + error)
    # A frame in the photo's pose shows the same areas of the surface, at the same places; a logarithm compares close
    # places of one body as well as distant ones of two bodies.
    areas = [of[..., 0].reshape(25, 4, 3, 4, 3).sum((2, 4)) for of in (pieces * scale**2, photo)]
    shared = np.minimum(*areas).sum() / np.maximum(*areas).sum()
    return shared**4 * np.exp(-(pixels * np.log1p(16 * error)).sum() / pixels.sum()), scale, shift


def most_alike(agreement: np.ndarray) -> int:
    """Return the first of the frames that agree with the photo about as well as the best one."""
    return int(np.argmax(agreement >= 0.9 * agreement.max()))


def fit_clip(frames: list[np.ndarray], photo: np.ndarray) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Fit the one similarity of a clip by [`surface_pieces`]: scale, shift (x, y), and the frames' agreement.

    The scale is the weighted median over the frames that agree with the photo. The one that agrees best decides the
    shift, since others may stand elsewhere; its lower foot comes onto the photo's ground line. The result is `None` if
    no frame shares enough of the photo's surface.
    """
    fits = [fit_place(frame, photo) for frame in frames]
    agreement = np.array([fit[0] for fit in fits])
    best = most_alike(agreement)
    if agreement[best] < 1e-4:
        return None
    order = np.argsort([fit[1] for fit in fits])
    total = np.cumsum(agreement[order] ** 4 * (agreement[order] > 0.5 * agreement[best]))
    scale = fits[order[np.searchsorted(total, total[-1] / 2)]][1]
    _, _, shift = fit_place(frames[best], photo, scale)
    part, here, there, _, _ = match_pieces(frames[best], photo)
    feet = [part == foot for foot in (5, 6) if (part == foot).sum() > 3]
    if feet:
        y, photo_y = (max(places[foot, 1].mean() for foot in feet) for places in (here, there))
        shift[1] = photo_y - scale * y
    return scale, shift, agreement


def fit_silhouettes(masks: list[np.ndarray], photo: np.ndarray) -> tuple[float, np.ndarray]:
    """Fit the scale and the shift (x, y) of a clip by silhouettes `[H, W]`: the frame of the most similar outline
    comes onto the photo's, from head to feet and its middle onto the middle."""

    def extent(mask):
        y, x = np.nonzero(mask)
        return y.min(), y.max() + 1, np.median(x) + 0.5

    top, bottom, middle = extent(photo)
    fits = []
    for mask in filter(np.any, masks):
        low, high, centre = extent(mask)
        scale = (bottom - top) / (high - low)
        shift = np.array([middle - scale * centre, bottom - scale * high])
        placed = resample(mask, scale, shift, *photo.shape)
        fits.append(((placed & photo).sum() / (placed | photo).sum(), scale, shift))
    return max(fits, key=lambda fit: fit[0])[1:]


def resample(pixels: np.ndarray, scale: float, shift: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale and shift a picture, `[H, W, ...]`, into `height` x `width` pixels; each copies the nearest, or is 0."""
    padded = np.pad(pixels, [(1, 1), (1, 1), *[(0, 0)] * (pixels.ndim - 2)])
    rows, columns = (
        np.clip(np.floor((np.arange(size) + 0.5 - move) / scale).astype(int) + 1, 0, side - 1)
        for size, move, side in ((height, shift[1], padded.shape[0]), (width, shift[0], padded.shape[1]))
    )
    return padded[rows[:, None], columns]


def place_driver(frames: list[np.ndarray], photo: np.ndarray) -> tuple[float, np.ndarray, np.ndarray | None]:
    """Return scale, shift and the frames' agreement that place a driver on the body in a photo.

    `photo` is IUV `[H, W, 3]` (V, U, I); so are `frames`, or they are maps `[H, W, 2]`. Maps, and a clip that never
    shows the photo's side of the body, are placed by their silhouettes, with a warning and without an agreement.
    """
    _check(any(frame.any() for frame in frames), "`poses` must show a body in at least one frame", "none")
    _check(photo[..., 2].any(), "`photo_iuv` must show a body", "a picture without one")
    sizes = {frame.shape[:2] for frame in frames}
    _check(len(sizes) == 1, "`poses` must all have the same size", f"(H, W) of {sorted(sizes)}")
    has_parts = frames[0].shape[-1] == 3
    if has_parts:
        pieces = [surface_pieces(f[..., 2], f[..., 1] / 255, f[..., 0] / 255) for f in (photo, *frames)]
        if found := fit_clip(pieces[1:], pieces[0]):
            return found
    lacks = "no frame shows the side of the body that the photo shows" if has_parts else "pose maps have no part codes"
    warnings.warn(f"The driver is placed by its silhouette, which is less exact: {lacks}.", stacklevel=3)
    masks = [frame[..., 2] > 0 if has_parts else frame.any(-1) for frame in frames]
    return *fit_silhouettes(masks, photo[..., 2] > 0), None


def align_pose_maps(poses: Sequence[Image.Image] | torch.Tensor, photo_iuv: Image.Image) -> torch.Tensor:
    """Move and scale a driver's poses onto the body in a photo, by one scale and one shift for the whole clip.

    The poses are IUV pictures (R = V, G = U, B = I), or pose maps `(F, 2, H, W)`, which have no part codes, so that
    their silhouettes decide. Returned are pose maps of the photo's size, `(F, 2, H, W)`, float32, in `[0, 1]`. Other
    poses or photos, or any without a body, raise a `ValueError`.
    """
    photo = read_iuv(photo_iuv, "photo_iuv")
    if isinstance(poses, torch.Tensor):
        maps = _to_array(poses, "poses", (0, 1), "lie in [0, 1] and be finite")
        is_clip = maps.ndim == 4 and maps.shape[1] == 2 and maps.dtype.kind == "f"
        _check(is_clip, "`poses` must be floating point with the shape (F, 2, H, W)", f"{maps.dtype} {maps.shape}")
        frames = list(maps.astype(np.float32, copy=False).transpose(0, 2, 3, 1))
    else:
        _check(isinstance(poses, Iterable), "`poses` must be a tensor or a list of IUV images", type(poses))
        frames = [read_iuv(pose, f"poses[{index}]") for index, pose in enumerate(poses)]
    scale, shift, _ = place_driver(frames, photo)
    placed = [resample(frame, scale, shift, *photo.shape[:2]) for frame in frames]
    if frames[0].shape[-1] == 3:
        return torch.stack([iuv_to_pose_map(frame) for frame in placed])
    return torch.from_numpy(np.stack(placed)).permute(0, 3, 1, 2).contiguous()


# examples/community: end


def clip_pixel_values(
    pixel_values: torch.Tensor, image_size: int, feature_extractor: CLIPImageProcessor
) -> torch.Tensor:
    """Convert canvases `(B, 3, H, W)` in `[-1, 1]` to CLIP's normalised input `(B, 3, image_size, image_size)`.

    The whole canvas is squeezed to a square, or its central square is taken if `feature_extractor.do_center_crop` is
    set. Pixels are rounded to 8 bits, so no gradients pass. The result is float32, on the device of `pixel_values`.
    """
    canvases = ((pixel_values.detach().float() + 1.0) * 127.5).round().clamp(0, 255)
    canvases = canvases.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    height, width = canvases.shape[1:3]
    left, top = max(width - height, 0) / 2, max(height - width, 0) / 2
    box = (left, top, width - left, height - top) if feature_extractor.do_center_crop else None
    squares = [Image.fromarray(c).resize((image_size, image_size), Image.Resampling.BICUBIC, box) for c in canvases]
    squares = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2).float() / 255
    settings = (feature_extractor.image_mean, feature_extractor.image_std)
    mean, std = (torch.tensor(v, dtype=torch.float32, device="cpu").view(1, 3, 1, 1) for v in settings)
    return ((squares - mean) / std).to(pixel_values.device)


def encode_pixels(
    pixel_values: torch.Tensor, vae: AutoencoderKL, image_range: tuple[float, float] = (-1.0, 1.0)
) -> DiagonalGaussianDistribution:
    """Return the VAE's posterior over unscaled latents `(B, C, h, w)` of pictures `(B, 3, H, W)` in `[-1, 1]`.

    `image_range` holds the VAE's input values for black and white. The VAE runs in its own dtype.
    """
    low, high = image_range
    encoded = vae.encode((low + (high - low) * (pixel_values + 1.0) / 2.0).to(vae.dtype))[0]
    if isinstance(encoded, torch.Tensor):  # latents, as of AutoencoderTiny: a distribution without variance
        encoded = DiagonalGaussianDistribution(torch.cat([encoded, encoded], dim=1), deterministic=True)
    return encoded


def encode_reference(
    pixel_values: torch.Tensor,
    vae: AutoencoderKL,
    image_encoder: CLIPVisionModel,
    feature_extractor: CLIPImageProcessor,
    image_range: tuple[float, float] = (-1.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode canvases `(B, 3, H, W)` in `[-1, 1]` ([`fit_image`]) into the inputs of the adapter.

    Returns `image_embeds` `(B, T, D)`, the image encoder's `last_hidden_state` without post-layernorm, and
    `image_latents` `(B, C, h, w)`, the VAE's posterior mean times its `scaling_factor`, which also start the sampling.
    """
    image_latents = encode_pixels(pixel_values, vae, image_range).mode() * vae.config.scaling_factor
    clip_pixels = clip_pixel_values(pixel_values, image_encoder.config.image_size, feature_extractor)
    return image_encoder(clip_pixels.to(image_encoder.dtype)).last_hidden_state, image_latents


def split_frames(frame_indices: Sequence[int], chunk_size: int) -> list[tuple[list[int], int]]:
    """Split frames into chunks of one size, at most `chunk_size`. Return each chunk and the number of its own frames.

    The last chunk is padded with its last frame.
    """
    count = len(frame_indices)
    size = math.ceil(count / math.ceil(count / int(chunk_size)))
    chunks = [list(frame_indices[first : first + size]) for first in range(0, count, size)]
    return [(chunk + chunk[-1:] * (size - len(chunk)), len(chunk)) for chunk in chunks]


def guidance_branches(
    image_guidance_scale: float,
    pose_guidance_scale: float,
    step: int = 0,
    num_steps: int = 1,
    start: float = 0.0,
    stop: float = 1.0,
) -> list[tuple[float, bool, bool]]:
    """Return `(weight, sees the photo, sees the pose)` of each prediction with a weight other than 0.

    They sum up to `eps(0, 0) + s_I (eps(c_I, 0) - eps(0, 0)) + s_p (eps(c_I, c_p) - eps(c_I, 0))`; 0 means null. Both
    scales are 1 in a step outside of `start <= step / num_steps < stop`.
    """
    is_guided = start <= step / num_steps < stop
    s_i, s_p = (float(image_guidance_scale), float(pose_guidance_scale)) if is_guided else (1.0, 1.0)
    branches = [(1.0 - s_i, False, False), (s_i - s_p, True, False), (s_p, True, True)]
    return [branch for branch in branches if branch[0] != 0]


def combine_predictions(predictions: dict, branches: list[tuple[float, bool, bool]]) -> torch.Tensor:
    """Return the sum of predictions by `(sees the photo, sees the pose)`, weighted as [`guidance_branches`] says."""
    return sum(weight * predictions[*sees] for weight, *sees in branches)


def collect_frames(chunks: Iterable[tuple], num_videos: int, num_frames: int) -> tuple[Any, list[list[bool]] | None]:
    """Collect chunks of frames: the index of the video, the first frame's place in it, frames, and flags or `None`.

    Returned are the frames of all videos, in lists if the chunks are lists, else in an array or tensor, and the flags.
    Frames that never came are missing in lists, and 0 in arrays and tensors.
    """
    frames = all_flags = None
    for b, first, chunk, flags in chunks:
        if flags is not None:
            all_flags = all_flags or [[] for _ in range(num_videos)]
            all_flags[b].extend(flags)
        if isinstance(chunk, list):
            frames = frames or [[] for _ in range(num_videos)]
            frames[b].extend(chunk)
            continue
        if frames is None:
            shape = (num_videos, num_frames, *chunk.shape[1:])
            frames = np.zeros(shape, np.float32) if isinstance(chunk, np.ndarray) else chunk.new_zeros(shape)
        frames[b, first : first + len(chunk)] = chunk
    return frames, all_flags


def check_output_type(output_type: Any) -> None:
    """Raise a `ValueError` unless frames can have this type."""
    is_known = isinstance(output_type, str) and output_type in ("pil", "np", "pt", "latent")
    _check(is_known, "`output_type` must be 'pil', 'np', 'pt' or 'latent'", _short(output_type))


# examples/community: left out
def teacher_digest(unet: UNet2DConditionModel) -> str:
    """Return 16 hex digits that tell a UNet, in any floating-point type, by the signs of its first layer's weights."""
    signs = torch.signbit(unet.conv_in.weight.detach()).cpu().numpy()
    return hashlib.sha256(np.packbits(signs).tobytes()).hexdigest()[:16]


# examples/community: end


class DreamPoseAdapter(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Mixes a photo's CLIP tokens and VAE latents into the UNet's cross-attention states (arXiv:2304.06025).

    A new adapter returns the CLIP tokens unchanged: their mixing weights start as the identity, the weights of the VAE
    tokens and the bias start as zero.

    Args:
        image_embed_dim (`int`, *optional*, defaults to 768): Width of the CLIP tokens and of the states.
        num_image_tokens (`int`, *optional*, defaults to 50): Number of CLIP tokens and of states.
        latent_channels (`int`, *optional*, defaults to 4): Channels of the VAE latents; each becomes one token.
        pooled_height (`int`, *optional*, defaults to 40): Height to which latents of any size are max-pooled.
        pooled_width (`int`, *optional*, defaults to 32): Width to which latents of any size are max-pooled.
    """

    # examples/community: left out
    # Kept in the class, since loading another model's copy of this file overwrites the file and the module's globals.
    _source = Path(__file__).read_bytes()
    # examples/community: end

    @register_to_config
    def __init__(self, image_embed_dim=768, num_image_tokens=50, latent_channels=4, pooled_height=40, pooled_width=32):
        super().__init__()
        self.vae_projection = nn.Linear(pooled_height * pooled_width, image_embed_dim)
        self.token_mixer = nn.Linear(num_image_tokens + latent_channels, num_image_tokens)
        with torch.no_grad():  # [identity | 0]; `nn.init.eye_` fails under `torch.set_default_device`
            self.token_mixer.weight.zero_().fill_diagonal_(1.0)
        nn.init.zeros_(self.token_mixer.bias)

    def forward(self, image_embeds: torch.Tensor, image_latents: torch.Tensor) -> torch.Tensor:
        """Mix CLIP tokens `(B, T, D)` and scaled latents `(B, C, h, w)` of any size into states `(B, T, D)`."""
        pooled_size = (self.config.pooled_height, self.config.pooled_width)
        vae_tokens = self.vae_projection(F.adaptive_max_pool2d(image_latents, pooled_size).flatten(2))
        tokens = torch.cat([image_embeds, vae_tokens], dim=1)  # [B, T + C, D]
        return self.token_mixer(tokens.transpose(1, 2)).transpose(1, 2)


@dataclass
class DreamPosePipelineOutput(BaseOutput):
    """Output class of the DreamPose pipeline.

    Args:
        frames (`list`, `np.ndarray` or `torch.Tensor`):
            The videos: `B` lists of `F` PIL images, an array `(B, F, H, W, 3)` in `[0, 1]`, a tensor
            `(B, F, 3, H, W)` in `[0, 1]`, or scaled latents `(B, F, C, h, w)`; float32 on the CPU.
        nsfw_content_detected (`list`, *optional*): `B` lists of `F` booleans, or `None` if no safety checker ran.
    """

    frames: list[list[Image.Image]] | np.ndarray | torch.Tensor
    nsfw_content_detected: list[list[bool]] | None = None


# examples/community: left out
# Fields of a `LoraConfig` that are checked one by one, or do not change a loaded LoRA.
_OTHER_LORA_FIELDS = """r lora_alpha rank_pattern alpha_pattern target_modules exclude_modules layers_to_transform
    layers_pattern lora_dropout task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    loftq_config eva_config""".split()


def _lora_config(part: str, ranks: dict[str, int], state_dict: dict, metadata: dict, known: dict) -> dict[str, Any]:
    """Return the `LoraConfig` arguments of one component: layers from its weights, scales from its metadata. PEFT runs
    names in metadata as regular expressions. Here a name is literal: the end of a path, or "^" and the path."""

    def check(is_valid: bool, name: str, rule: str, value: Any) -> None:
        _check(is_valid, f"`metadata` of a LoRA must have {rule} as `{part}.{name}`", _short(value))

    fields = {name: metadata[f"{part}.{name}"] for name in known if metadata.get(f"{part}.{name}") is not None}
    use_dora, *mixed = {f"{part}.{path}.lora_magnitude_vector" in state_dict for path in ranks}
    rule = "`pretrained_model_name_or_path_or_dict` must have DoRA in all layers of a component or in none"
    _check(not mixed, rule, f"it in some of `{part}`")
    choices = {"use_rslora": [True, False], "use_dora": [use_dora]}
    choices["init_lora_weights"] = [True, False, "gaussian", "eva"]  # others also change the model's weights
    for name, value in fields.items():
        if name not in _OTHER_LORA_FIELDS:
            rule = " or ".join(map(repr, choices.get(name, [known[name]])))
            is_plain = isinstance(value, (str, int, float, list, dict))
            check(is_plain and value in choices.get(name, [known[name], False, [], {}]), name, rule, value)
    config = {"use_rslora": bool(fields.get("use_rslora")), "use_dora": use_dora, "target_modules": list(ranks)}
    for name, pattern_name in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        pattern, values = fields.get(pattern_name, {}), {}
        is_short = isinstance(pattern, dict) and len(pattern) <= 2000
        is_literal = is_short and all(re.fullmatch(r"\^?(\w|\\?\.)+", str(key)) for key in pattern)
        check(is_literal, pattern_name, "up to 2,000 names of layers, not regular expressions,", pattern)
        pattern = {str(key).replace("\\", ""): value for key, value in pattern.items()}
        for path, rank in ranks.items():
            found = (value for key, value in pattern.items() if f".^{path}".endswith((f".{key}", f"^{key}")))
            value = values[path] = next(found, fields.get(name, rank))
            is_number, rule = type(value) in (int, float) and 0 < value <= 1e6, "a number above 0, at most 1e6,"
            if name == "r":
                is_number, rule = type(value) is int and value == rank, f"{rank}, the rank of {path},"
            check(is_number, name, rule, value)
        config[name] = usual = next(iter(values.values()))
        config[pattern_name] = {f"^{re.escape(path)}": value for path, value in values.items() if value != usual}
    return config


def _lora_method(method: Callable) -> Callable:
    """Let a LoRA method see through the wrappers of `torch.compile`; end the few steps of a LoRA that it detaches."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        models = {part: getattr(self, part) for part in type(self)._lora_loadable_modules}
        own = {part: getattr(model, "_orig_mod", model) for part, model in models.items()}
        self._lora_loadable_modules = [part for part in own if hasattr(own[part], "load_lora_adapter")]
        fused = {name for layer in _layers(own["unet"]) for name in getattr(layer, "merged_adapters", ())}
        try:
            vars(self).update(own)
            return method(self, *args, **kwargs)
        finally:
            vars(self).update(models)
            if self._few_steps_of not in getattr(own["unet"], "peft_config", ()):
                self._few_steps_of = None if self._few_steps_of in fused else self._few_steps_of
                self.use_full_steps()

    return run


# examples/community: end


class DreamPosePipeline(DiffusionPipeline, LoraBaseMixin):
    r"""
    Pipeline for animating a photo of a person with a pose sequence, as proposed in DreamPose (arXiv:2304.06025).

    A subject is a person that the model was fine-tuned on, stored as a LoRA of UNet, adapter and VAE in one file.
    [`~DreamPosePipeline.load_lora_weights`] and the methods of [`LoraBaseMixin`] act on all three.

    Args:
        vae ([`AutoencoderKL`] or [`AutoencoderTiny`], among others): Encodes the photo and decodes the frames.
        unet ([`UNet2DConditionModel`]):
            Denoises the frames. Its `latent_channels + 2 * (2 * r + 1)` channels are latents and pose window.
        image_encoder ([`~transformers.CLIPVisionModel`]): Encodes the photo into tokens.
        feature_extractor ([`~transformers.CLIPImageProcessor`]): Holds normalisation and crop of CLIP's input.
        adapter ([`DreamPoseAdapter`]): Mixes the photo's tokens and latents into the UNet's cross-attention states.
        scheduler ([`KarrasDiffusionSchedulers`] or another): Any with Stable Diffusion's timesteps.
        safety_checker ([`StableDiffusionSafetyChecker`], *optional*): Blackens frames that it finds unsafe.
        default_height (`int`, *optional*, defaults to 640): Height of the frames if the call gives none.
        default_width (`int`, *optional*, defaults to 512): Width of the frames if the call gives none.
        default_num_inference_steps (`int`, *optional*, defaults to 25): Denoising steps if the call gives none.
        default_image_guidance_scale (`float`, *optional*, defaults to 8.0): Image guidance if the call gives none.
        default_pose_guidance_scale (`float`, *optional*, defaults to 3.0): Pose guidance if the call gives none.
        image_range (`tuple`, *optional*): The VAE's black and white, by default as `vae` had them, or `(-1.0, 1.0)`.
        pose_range (`tuple`, *optional*):
            The UNet's values of pose 0 and 1 (the null pose is 0): by default as `unet` had them, or `(0.0, 1.0)`.
        default_guidance_stop (`float`, *optional*, defaults to 1.0): End of guidance if the call gives none.
    """

    model_cpu_offload_seq = "image_encoder->adapter->unet->vae"
    _optional_components = ["safety_checker"]
    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = ["latents", "noise_pred"]
    # examples/community: left out
    _lora_loadable_modules = ["unet", "adapter", "vae"]
    _source = Path(__file__).read_bytes()
    # examples/community: end
    _current_timestep = None
    _held_schedulers = {}
    # examples/community: left out
    _few_steps_of = None  # the few-step LoRA in use
    # examples/community: end

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        image_encoder: CLIPVisionModel,
        feature_extractor: CLIPImageProcessor,
        adapter: DreamPoseAdapter | ModelMixin,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        default_height: int = 640,
        default_width: int = 512,
        default_num_inference_steps: int = 25,
        default_image_guidance_scale: float = 8.0,
        default_pose_guidance_scale: float = 3.0,
        image_range: tuple[float, float] | list[float] | None = None,
        pose_range: tuple[float, float] | list[float] | None = None,
        default_guidance_stop: float = 1.0,
    ):
        given = locals()
        super().__init__()
        components = {name: given[name] for name in (*_SETTINGS, "scheduler", "safety_checker")}
        for name, value in components.items():
            _check(value is None or hasattr(value, "__module__"), f"`{name}` must be a component", _short(value))
        self.register_modules(**components)
        self.register_to_config(**{f"default_{name}": given[f"default_{name}"] for name in _DEFAULTS})
        self.register_to_config(image_range=self._resolve_range("image_range", image_range, vae, (-1.0, 1.0)))
        self.register_to_config(pose_range=self._resolve_range("pose_range", pose_range, unet, (0.0, 1.0)))
        self._check_settings(*(name for name in ("vae", "unet") if getattr(self, name) is not None))
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae is not None else 8
        if self.unet is not None:
            _ = self.pose_radius  # raises for a UNet that was not widened

    @staticmethod
    def _resolve_range(name: str, value: Any, component: Any, default: tuple[float, float]) -> tuple[float, float]:
        """Return the given range, else the one that `component` carries, else `default`."""
        value = getattr(component, "_dreampose_range", default) if value is None else value
        values = value if isinstance(value, (tuple, list)) else []
        are_numbers = [isinstance(v, numbers.Real) and type(v) is not bool and abs(v) <= 1000 for v in values]
        is_range = are_numbers == [True, True] and abs(value[0] - value[1]) >= 1e-3
        _check(is_range, f"`{name}` must be two numbers in [-1000, 1000], at least 0.001 apart", _short(value))
        return tuple(value)

    @property
    def components(self) -> dict[str, Any]:
        """All components by name. VAE and UNet carry `image_range` and `pose_range` to a pipeline made of them."""
        components = super().components
        for name, setting in (("vae", "image_range"), ("unet", "pose_range")):
            if components[name] is not None:
                components[name]._dreampose_range = self.config[setting]
        return components

    @property
    def pose_radius(self) -> int:
        """Number of frames on each side of the pose window's centre, derived from the UNet's input channels."""
        in_channels, latent_channels = self.unet.config.in_channels, self.unet.config.out_channels
        pose_channels = in_channels - latent_channels
        rule = f"`unet` must take {latent_channels} latent channels and 2 * (2 * r + 1) pose channels, e.g. "
        rule += f"{latent_channels + 10} for five poses (widen `conv_in` by new input channels with weights of 0)"
        _check(pose_channels >= 2 and pose_channels % 4 == 2, rule, f"in_channels={in_channels}")
        return (pose_channels - 2) // 4

    image_guidance_scale = property(lambda self: self._image_guidance_scale)
    pose_guidance_scale = property(lambda self: self._pose_guidance_scale)
    num_timesteps = property(lambda self: self._num_timesteps)
    current_timestep = property(lambda self: self._current_timestep)
    interrupt = property(lambda self: self._interrupt)
    _step_draws_noise = property(lambda self: "generator" in inspect.signature(self.scheduler.step).parameters)

    # examples/community: left out
    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """Write a self-contained folder: weights, `model_index.json` and the code that loads them."""
        for name, component in self.components.items():
            rule = "`save_pretrained` takes no PEFT layers: fuse them to keep their effect, then unload them"
            _check(not any(hasattr(layer, "base_layer") for layer in _layers(component)), rule, f"some in `{name}`")
        self._check_saving(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    @staticmethod
    def _make_folder(save_directory: str | os.PathLike) -> None:
        """Make the folder to save to, or raise a `ValueError`."""
        try:
            os.makedirs(os.path.join(save_directory, ""), exist_ok=True)  # joined, so that bytes are refused
        except (OSError, TypeError, ValueError) as error:
            got = f"{_short(save_directory)} ({getattr(error, 'strerror', error)})"
            raise ValueError(f"`save_directory` must be a folder or the path of a new one; got {got}.") from error

    def _check_saving(self, save_directory: str | os.PathLike) -> None:
        """Raise a `ValueError` if other code than this file's is needed to load the pipeline; make the folder."""
        adapter = getattr(self.adapter, "_orig_mod", self.adapter)  # of a compiled adapter
        for name, value, own in (("self", self, DreamPosePipeline), ("adapter", adapter, DreamPoseAdapter)):
            # by name and bases, since diffusers may have executed this file again
            found, expected = ((c.__name__, c.__bases__) for c in (type(value), own))
            rule = f"`{name}` must be a {own.__name__} itself to be saved, since only its code is saved"
            _check(value is None or found == expected, rule, type(value).__name__)
        self._make_folder(save_directory)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Write `model_index.json` and two copies of this file; drop `_name_or_path` from the components' configs."""
        self._check_saving(save_directory)
        Path(save_directory, "pipeline_dreampose.py").write_bytes(self._source)
        if self.adapter is not None:  # its copy has another name, since diffusers caches one module per name
            folder = Path(save_directory, "adapter")
            folder.mkdir(exist_ok=True)
            (folder / "dreampose_adapter.py").write_bytes(getattr(self.adapter, "_source", self._source))
        for path in (path for name in self.components for path in Path(save_directory, name).glob("config.json")):
            config = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "_name_or_path"}
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike):
        """Write `model_index.json` so that diffusers finds both classes in the copies that `save_config` writes."""
        config = json.loads(self.to_json_string())
        config.pop("_name_or_path", None)  # a local path means nothing elsewhere
        config["_class_name"] = ["pipeline_dreampose", "DreamPosePipeline"]
        if self.adapter is not None:
            config["adapter"] = ["dreampose_adapter", "DreamPoseAdapter"]
        library, class_name = config["feature_extractor"]
        # transformers 5 without torchvision writes a class name here that other installations lack
        config["feature_extractor"] = [library, class_name and class_name.removesuffix("Pil").removesuffix("Fast")]
        Path(json_file_path).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """Read `model_index.json` without its pipeline file, so that this class runs."""
        # `download` calls this private method alone. It lacks a public way to say that the class is here already.
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        return config

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Read `model_index.json` as [`ConfigMixin.load_config`] does; take the adapter's class from this module."""
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if config.get("adapter", [None])[-1] == "DreamPoseAdapter":
            config["adapter"] = [__name__, "DreamPoseAdapter"]
        return loaded

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict: str | os.PathLike | dict, **kwargs):
        """Read a subject's weights; with `return_lora_metadata=True`, return `(weights, metadata)`.

        Other options are `weight_name` (defaults to `"pytorch_lora_weights.safetensors"`), `metadata` of weights by
        name, and those of `hf_hub_download`.
        """
        return_lora_metadata = kwargs.pop("return_lora_metadata", False)
        weight_name = str(kwargs.pop("weight_name", None) or LORA_WEIGHT_NAME_SAFE)
        _check(weight_name.endswith(".safetensors"), "`weight_name` must name a safetensors file", repr(weight_name))
        _check(kwargs.pop("use_safetensors", None) is not False, "`use_safetensors` must be True", False)
        names = "cache_dir force_download proxies local_files_only token revision subfolder metadata".split()
        _check(kwargs.keys() <= set(names), f"`kwargs` must be among `weight_name` and {names}", sorted(kwargs))
        options = {**dict.fromkeys(names), **kwargs, "weight_name": weight_name, "use_safetensors": True}
        options |= {"allow_pickle": False, "user_agent": {"file_type": "lora", "framework": "pytorch"}}
        source = pretrained_model_name_or_path_or_dict
        exists = isinstance(source, dict) or (isinstance(source, (str, os.PathLike)) and os.path.exists(source))
        is_known = exists or re.fullmatch(r"[\w.-]+/[\w.-]+", str(source))  # the Hub is asked for nothing else
        rule = "`pretrained_model_name_or_path_or_dict` must be a file, a folder, an id `owner/name` or a dict"
        _check(is_known, rule, _short(source))
        has_own = not isinstance(source, dict) and kwargs.get("metadata") is not None
        _check(not has_own, "`metadata` must be left out if weights come from a file, which has its own", "both")
        try:
            # diffusers' public functions that read a LoRA belong to other models, whose key formats they convert.
            state_dict, metadata = _fetch_state_dict(source, **options)
        except (SafetensorError, ValueError, RecursionError) as error:  # also of an integer with too many digits
            rule = "`pretrained_model_name_or_path_or_dict` must be safetensors, and its metadata JSON"
            raise ValueError(f"{rule}; got {error}.") from error
        metadata = {} if metadata is None else metadata
        is_named = isinstance(metadata, dict) and all(isinstance(name, str) for name in metadata)
        _check(is_named, "`metadata` of a LoRA must be a dict with names as keys", _short(metadata))
        return (state_dict, metadata) if return_lora_metadata else state_dict

    def check_lora(self, state_dict: dict[str, torch.Tensor], metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Raise a `ValueError` unless this is a LoRA of this model; return `LoraConfig` arguments by component."""
        rule = "`pretrained_model_name_or_path_or_dict` must hold a LoRA of this model's `unet`, `adapter` and `vae`"
        _check(state_dict, rule, "no weights")
        dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        for key, weight in state_dict.items():
            kind = weight.dtype if isinstance(weight, torch.Tensor) else type(weight)
            is_sane = kind in dtypes and _is_dense(weight) and (weight.abs() <= 1e4).all()  # fits float16, too
            _check(is_sane, f"{rule}, as finite floating-point tensors up to 1e4", f"{key!s:.200} of {kind}")
        layers, ranks = {}, {part: {} for part in self._lora_loadable_modules}
        for part in ranks:
            for path, layer in getattr(self, part).named_modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)) and ".lora_" not in path:
                    layers[f"{part}.{path.removesuffix('.base_layer')}"] = layer
        for key, weight in state_dict.items():
            path, _, kind = str(key).rpartition(".lora_")
            layer, down, up = layers.get(path), *(state_dict.get(f"{path}.lora_{letter}.weight") for letter in "AB")
            has_partner = layer is not None and down is not None and up is not None
            _check(has_partner, f"{rule}, `lora_A` and `lora_B` per layer", f"{key!s:.99} without layer or partner")
            is_linear = isinstance(layer, nn.Linear)  # the shape of a quantised weight may differ
            shape = (layer.out_features, layer.in_features) if is_linear else tuple(layer.weight.shape)
            rank, ones = down.shape[0] if down.ndim else 0, (1,) * (len(shape) - 2)
            fitting = {"A.weight": (rank, *shape[1:]), "B.weight": (shape[0], rank, *ones)}
            fitting["magnitude_vector"] = (*ones[1:], shape[0], *ones)  # of DoRA
            is_fitting = rank >= 1 and tuple(weight.shape) == fitting.get(kind)
            _check(is_fitting, f"{rule}; {path} has shape {shape}", f"{key} of shape {tuple(weight.shape)}")
            part, _, path = path.partition(".")
            ranks[part][path] = rank
        known = importlib.import_module("peft").LoraConfig().to_dict()
        configs = {part: _lora_config(part, ranks[part], state_dict, metadata, known) for part in ranks if ranks[part]}
        expected = {f"{part}.{name}" for part in type(self)._lora_loadable_modules for name in known}
        unknown = sorted(key for key in metadata.keys() - expected if not key.startswith("dreampose."))
        if unknown:  # e.g. of a newer PEFT
            logger.warning(f"Unknown metadata of this LoRA is ignored: {_short(unknown)}.")
        return configs

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict, adapter_name=None, hotswap=False, **kwargs):
        """Attach a subject and activate it. [`LoraBaseMixin.set_adapters`] switches between attached subjects.

        It comes from a Hub repository, a folder, a safetensors file or weights by name. Its name is by default
        `"default_0"`, `"default_1"` and so on. `hotswap=True` replaces the attached subject of this name in place, on
        the same layers; the scale that was set stays. `kwargs` are `low_cpu_mem_usage` and those of
        [`~DreamPosePipeline.lora_state_dict`]. A refused load is a `ValueError` and changes nothing.
        """
        options = {"hotswap": hotswap, "low_cpu_mem_usage": kwargs.pop("low_cpu_mem_usage", True)}
        if isinstance(pretrained_model_name_or_path_or_dict, dict) and kwargs.get("metadata") is None:
            logger.warning("This LoRA has no `metadata`, so the alpha of each layer is taken to be its rank.")
        kwargs["return_lora_metadata"] = True
        state_dict, metadata = self.lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        base_model = metadata.get("dreampose.base_model")
        if base_model and self.name_or_path and base_model != self.name_or_path:  # maybe a copy: no error
            logger.warning(f"This LoRA was trained on {str(base_model)[:200]!r}; this model is {self.name_or_path!r}.")
        configs = self.check_lora(state_dict, metadata)
        few_steps = self._read_few_steps(metadata)
        # sorted, since diffusers looks for `lora_A` in the first name; copied, since a swap may change its tensors
        state_dict = {key: weight.clone() for key, weight in sorted(state_dict.items())}
        attached = self.get_list_adapters()
        if adapter_name is None:
            taken = {name for names in attached.values() for name in names}
            adapter_name = next(name for name in map("default_{}".format, range(len(taken) + 1)) if name not in taken)
        is_name = isinstance(adapter_name, str) and 2 <= len(adapter_name) <= 100 and "." not in adapter_name
        # PEFT finds names inside keys, and stores weights under them in an `nn.ModuleDict`
        is_name = is_name and adapter_name[:5] not in "lora_" and not hasattr(nn.ModuleDict(), adapter_name)
        rule = "`adapter_name` must have two letters or more, no dots, at most 100 letters, not begin with 'lora_'"
        _check(is_name, f"{rule} or parts of it, nor be in `nn.ModuleDict`", _short(adapter_name))
        holders = [part for part in self._lora_loadable_modules if adapter_name in attached.get(part, [])]
        got = f"{adapter_name!r}, which is {'attached' if holders else 'not'}"
        _check(bool(holders) == bool(hotswap), "`adapter_name` must be attached if, and only if, `hotswap=True`", got)
        rule = f"`hotswap` must replace {adapter_name!r} in the same components {holders}"
        _check(not hotswap or holders == list(configs), rule, list(configs))
        with self._undone_on_error(adapter_name):
            for part, config in configs.items():
                self._load_lora(part, config, state_dict, adapter_name, **options)
            for layer in self._lora_layers() if not hotswap else ():
                layer.set_adapter([adapter_name])
        if adapter_name == self._few_steps_of:  # which was replaced
            self.use_full_steps()
        self.unet._dreampose_few_steps = {**getattr(self.unet, "_dreampose_few_steps", {}), adapter_name: few_steps}

    def _lora_layers(self) -> list[nn.Module]:
        """Return the layers of all components that hold LoRAs."""
        parts = [getattr(self, part) for part in self._lora_loadable_modules]
        return [layer for part in parts for layer in _layers(part) if hasattr(layer, "lora_A")]

    def _load_lora(self, part: str, config: dict, state_dict: dict, adapter_name: str, **options) -> None:
        """Attach a checked subject to one component, or replace it there."""
        model, scales = getattr(self, part), {}
        layers = {path: layer for path, layer in model.named_modules() if adapter_name in getattr(layer, "lora_A", ())}
        if options["hotswap"]:
            old, new = model.peft_config[adapter_name], sorted(set(config["target_modules"]) - layers.keys())
            got = f"other layers {_short(new)}" if new else "DoRA or another rsLoRA flag"
            has_dora, is_same = config["use_dora"] or old.use_dora, config["use_rslora"] == old.use_rslora
            rule = "`hotswap` needs the same layers and kind of LoRA, no DoRA"
            _check(is_same and not new and not has_dora, rule, f"{got} in `{part}`")
            is_fused = any(adapter_name in layer.merged_adapters for layer in layers.values())
            _check(not is_fused, "`hotswap` needs an unfused subject", f"{adapter_name!r} fused into `{part}`")
            keys = [key.rpartition(".lora_") for key in model.state_dict() if adapter_name in key]  # as PEFT looks
            is_unique = not any(key[1] and key[2].split(".")[1] != adapter_name for key in keys)
            _check(is_unique, "`hotswap` needs a name that no other subject or layer contains", repr(adapter_name))
            for path in config["target_modules"]:
                rank, alpha = layers[path].r[adapter_name], layers[path].lora_alpha[adapter_name]
                usual = alpha / (math.sqrt(rank) if old.use_rslora else rank)
                scales[path] = float(layers[path].scaling[adapter_name] / usual)
            # diffusers keeps the old configuration, and refuses another `alpha_pattern`
            model.peft_config[adapter_name] = type(old)(**config)
        metadata = {f"{part}.{name}": value for name, value in config.items()}
        # Only by the private `_pipeline` does diffusers learn whose offloading to take off and to put back.
        options |= {"adapter_name": adapter_name, "metadata": metadata, "_pipeline": self}
        model.load_lora_adapter(state_dict, prefix=part, **options)
        # PEFT 0.21 swaps neither `r` nor `lora_alpha`, from which scalings are computed, and forgets the set scale.
        for path, scale in scales.items():
            layer, name = layers[path], f"^{re.escape(path)}"
            layer.r[adapter_name] = config["rank_pattern"].get(name, config["r"])
            layer.lora_alpha[adapter_name] = config["alpha_pattern"].get(name, config["lora_alpha"])
            scaling = layer.scaling[adapter_name]
            layer.set_scale(adapter_name, scale)
            if isinstance(scaling, torch.Tensor):  # after `enable_lora_hotswap`
                layer.scaling[adapter_name] = scaling.fill_(layer.scaling[adapter_name])
            for linear in (layer.lora_A[adapter_name], layer.lora_B[adapter_name]):
                if not isinstance(linear.weight, nn.Parameter):  # PEFT leaves plain tensors where the rank has grown
                    linear.weight = nn.Parameter(linear.weight, requires_grad=False)

    @contextmanager
    def _undone_on_error(self, adapter_name: str) -> Iterator[None]:
        """Give all models their modules, hooks and settings, and the subject its weights, back if the block fails."""
        models = nn.ModuleList(model for model in self.components.values() if isinstance(model, nn.Module))
        changed, saved = [p for name, p in models.named_parameters() if f".{adapter_name}." in name], {}
        for module in models.modules():
            saved[module] = {name: type(v)(v) if type(v) in (dict, list) else v for name, v in vars(module).items()}
            # scales are tensors after `enable_lora_hotswap`, changed in place by a swap
            scales = module.scaling.values() if hasattr(module, "lora_A") else ()
            changed += [scale for scale in scales if isinstance(scale, torch.Tensor)]
        copies = [tensor.detach().clone() for tensor in changed]
        try:
            yield
        except BaseException:
            for module, attributes in saved.items():
                vars(module).clear()
                vars(module).update(attributes)
            for tensor, copy in zip(changed, copies):
                tensor.data = copy
            raise

    @classmethod
    def save_lora_weights(cls, save_directory, unet_lora_layers=None, weight_name=None, run_metadata=None, **others):
        """Write a subject: `unet_lora_layers`, `adapter_lora_layers`, `vae_lora_layers`, their `LoraConfig`s as dicts
        (`unet_lora_adapter_metadata` and so on), and facts about the run as `run_metadata`, such as `base_model`."""
        others["unet_lora_layers"] = unet_lora_layers
        layers = {part: others.pop(f"{part}_lora_layers", None) for part in cls._lora_loadable_modules}
        metadata = {part: others.pop(f"{part}_lora_adapter_metadata", None) for part in layers}
        _check(not others, "`others` must be layers and metadata of the three components", sorted(others))
        layers = {part: weights for part, weights in layers.items() if weights}
        _check(layers, "`unet_lora_layers`, `adapter_lora_layers` or `vae_lora_layers` must be given", "none")
        cls._make_folder(save_directory)
        packed, facts = {}, {}
        for part, weights in layers.items():
            packed |= cls.pack_weights(weights, part)
        for part, values in (metadata | {"dreampose": run_metadata}).items():
            facts |= cls.pack_weights(values or {}, part)
        options = {"is_main_process": True, "save_function": None, "safe_serialization": True}
        cls.write_lora_layers(packed, save_directory, weight_name=weight_name, lora_adapter_metadata=facts, **options)

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: float | dict | list | None = None) -> None:
        """Activate attached subjects at scales, by default 1, or dicts of scales: [`LoraBaseMixin.set_adapters`]."""
        are_names = isinstance(adapter_names, (str, list, tuple)) and len(adapter_names) > 0
        _check(are_names, "`adapter_names` must name one or more attached subjects", _short(adapter_names))
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights]
        for scale in itertools.chain.from_iterable(w.values() if isinstance(w, dict) else [w] for w in weights):
            is_scale = isinstance(scale, numbers.Real) and abs(scale) <= 1000
            is_other = scale is None or isinstance(scale, dict)  # scales by block of the UNet
            _check(is_scale or is_other, "`adapter_weights` must hold numbers from -1000 to 1000", _short(scale))
        super().set_adapters(adapter_names, adapter_weights)

    def fuse_lora(self, components: list[str] | None = None, lora_scale: float = 1.0, **kwargs) -> None:
        """Fuse subjects into all `components`, or those given. `lora_scale` outlasts unfusing until `set_adapters`."""
        is_scale = isinstance(lora_scale, numbers.Real) and abs(lora_scale) <= 1000
        _check(is_scale, "`lora_scale` must be a number from -1000 to 1000", _short(lora_scale))
        super().fuse_lora(self._lora_loadable_modules if components is None else components, lora_scale, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Undo [`~DreamPosePipeline.fuse_lora`] in `components`, by default all three."""
        super().unfuse_lora(self._lora_loadable_modules if components is None else components, **kwargs)

    def _read_few_steps(self, metadata: dict[str, Any]) -> dict[str, Any] | None:
        """Check `dreampose.few_steps` of a LoRA's metadata; return scheduler and defaults, or `None` without it."""
        text = metadata.get("dreampose.few_steps")
        if text is None:
            return None
        try:
            _check(len(text) <= 10_000, "it must have at most 10,000 letters", len(text))
            settings = json.loads(text)
            config, teacher = settings["scheduler"], settings["teacher"]
            values = [v for value in config.values() for v in (value if isinstance(value, list) else [value])]
            is_small = all(v is None or isinstance(v, str) or abs(v) <= 10_000 for v in values)
            is_small = is_small and type(config.get("num_train_timesteps", 1000)) is int
            _check(is_small, "its numbers must be at most 10,000, its training steps whole", config)
            scheduler_class = getattr(importlib.import_module("diffusers"), config["_class_name"])
            is_scheduler = issubclass(scheduler_class, SchedulerMixin)
            is_known = is_scheduler and "beta_start" in inspect.signature(scheduler_class).parameters
            _check(is_known, "it must name a scheduler of diffusers for Stable Diffusion", config["_class_name"])
            _check(re.fullmatch("[0-9a-f]{16}", teacher), "`teacher` must be 16 hex digits", teacher)
            probe, values = copy.copy(self), {name: settings[name] for name in _DEFAULTS[2:-1]}
            probe.scheduler = scheduler_class.from_config(config)
            probe._check_scheduler()
            probe.check_numbers(**values)
            probe.check_timesteps(values["num_inference_steps"])
        except Exception as error:
            rule = "`metadata` of a LoRA must have scheduler, steps, scales and teacher as `dreampose.few_steps`"
            raise ValueError(f"{rule}; got {_short(text)} ({error!s:.200}).") from error
        if not self.unet.conv_in.weight.is_meta and teacher != teacher_digest(self.unet):  # meta if offloaded
            logger.warning("This LoRA was distilled from another teacher than this model, so it may draw badly.")
        return {"scheduler": probe.scheduler, **{f"default_{name}": value for name, value in values.items()}}

    def use_few_steps(self, adapter_name: str = "fast") -> None:
        """Sample with the scheduler, and by default with the steps and scales, of an attached few-step LoRA.

        It becomes active next to the LoRAs that are. [`~DreamPosePipeline.use_full_steps`] undoes the rest, and so do
        deleting and unloading the LoRA, unless it is fused: then the weights keep its effect, and the few steps stay
        and are saved with the pipeline. They are also the own steps of a pipeline made by `from_pipe` meanwhile.
        """
        known, attached = getattr(self.unet, "_dreampose_few_steps", {}), getattr(self.unet, "peft_config", {})
        names = [name for name, settings in known.items() if settings and name in attached]
        rule = f"`adapter_name` must name an attached LoRA with `dreampose.few_steps` in its metadata, among {names}"
        _check(isinstance(adapter_name, str) and adapter_name in names, rule, _short(adapter_name))
        self.use_full_steps()
        settings = copy.deepcopy(known[adapter_name])
        schedulers = (self.scheduler, settings.pop("scheduler"))
        self._full_steps = {name: self.config[name] for name in settings} | {"scheduler": schedulers}
        self._few_steps_of, self.scheduler = adapter_name, schedulers[1]
        self.register_to_config(**settings)
        layers = self._lora_layers()
        is_fused = any(adapter_name in layer.merged_adapters for layer in layers)
        for layer in () if is_fused else layers:
            active = [] if layer.disable_adapters else [name for name in layer.active_adapters if name != adapter_name]
            layer.set_adapter([*active, adapter_name])
            layer.enable_adapters(True)

    def use_full_steps(self) -> None:
        """Put the defaults from before `use_few_steps` back, and the scheduler unless another has been set since."""
        if self._few_steps_of is not None:
            former, own = self._full_steps.pop("scheduler")
            self.scheduler = former if self.scheduler is own else self.scheduler
            self.register_to_config(**self._full_steps)
            self._few_steps_of = None

    # examples/community: end

    def check_components(self) -> None:
        """Raise a `ValueError` unless the components fit each other."""
        self._check_settings(*_SETTINGS)
        self._check_scheduler()
        _ = self.pose_radius
        vision, latent_channels = self.image_encoder.config, self.vae.config.latent_channels
        for name, setting, other, expected in (
            ("adapter", "image_embed_dim", "unet", self.unet.config.cross_attention_dim),
            ("adapter", "image_embed_dim", "image_encoder", vision.hidden_size),
            ("adapter", "num_image_tokens", "image_encoder", (vision.image_size // vision.patch_size) ** 2 + 1),
            ("adapter", "latent_channels", "vae", latent_channels),
            ("unet", "out_channels", "vae", latent_channels),
        ):
            got = getattr(getattr(self, name).config, setting)
            _check(got == expected, f"`{name}` must fit `{other}`: {setting} must be {expected}", got)

    def _check_settings(self, *names: str) -> None:
        """Raise a `ValueError` unless the components `names` are of a kind that the pipeline can use."""
        for name in names:
            component = getattr(self, name)
            settings, got = getattr(component, "config", component), type(component).__name__
            missing = [setting for setting in _SETTINGS[name] if not hasattr(settings, setting)]
            _check(not missing, f"`{name}` must have the settings {missing}", got)
            takes_videos = name == "vae" and any(isinstance(layer, nn.Conv3d) for layer in _layers(component))
            _check(not takes_videos, "`vae` must encode single pictures, not videos", got)
            if name == "vae":
                channels = [getattr(settings, setting, 3) for setting in ("in_channels", "out_channels")]
                _check(channels == [3, 3], "`vae` must take and give 3 channels, red, green and blue", channels)
                factor, rule = settings.scaling_factor, "`vae` must have a finite `scaling_factor` other than 0"
                _check(isinstance(factor, numbers.Real) and 0 < abs(factor) < math.inf, rule, _short(factor))

    def _check_scheduler(self) -> None:
        """Raise a `ValueError` if a property of the scheduler makes it unusable."""
        scheduler, config = self.scheduler, getattr(self.scheduler, "config", {})
        _check(not isinstance(scheduler, type), "`scheduler` must be an object, not its class", scheduler)
        names = ("add_noise", "scale_model_input", "init_noise_sigma", "set_timesteps", "step", "alphas_cumprod")
        missing = [name for name in names if not hasattr(scheduler, name)]
        missing += [] if "beta_start" in config else ["beta_start"]
        arguments = {} if missing else inspect.signature(scheduler.step).parameters
        needed = [name for name, argument in arguments.items() if argument.default is argument.empty]
        is_flow = config.get("use_flow_sigmas") and config["prediction_type"] != "flow_prediction"
        for is_so, reason in (
            (missing, f"it lacks {', '.join(missing)}, so its timesteps are not those of a Stable Diffusion UNet"),
            (is_flow, "`use_flow_sigmas` gives it other noise levels than a Stable Diffusion UNet knows"),
            (str(config.get("variance_type")).startswith("learned"), "its `variance_type` needs predicted variances"),
            (hasattr(scheduler, "noise_sampler"), "its Brownian noise is tied to the batch, so to `chunk_size`"),
            (needed != ["model_output", "timestep", "sample"], f"its step needs {', '.join(needed)}"),
        ):
            if is_so:
                raise ValueError(f"`scheduler` must not be a {type(scheduler).__name__}: {reason}.")

    def check_timesteps(self, num_inference_steps: int) -> None:
        """Raise a `ValueError` unless the scheduler denoises in so many steps, at timesteps that the UNet knows."""
        name, limit = type(self.scheduler).__name__, self.scheduler.config.num_train_timesteps
        try:  # a single step has no direction
            timesteps = self.set_timesteps(max(num_inference_steps, 2), torch.device("cpu")).tolist()
        except Exception as error:
            rule = f"`num_inference_steps` must be a number that {name} can do"
            raise ValueError(f"{rule}; got {num_inference_steps} ({error}).") from error
        rule = f"`scheduler` and `num_inference_steps` must give falling timesteps from {limit - 1} to 0"
        is_falling = 0 <= min(timesteps) and max(timesteps) < limit and timesteps[0] > timesteps[-1]
        _check(is_falling, rule, f"{timesteps[0]:g} to {timesteps[-1]:g} of {name}")
        draws = {"generator": torch.Generator("cpu")} if self._step_draws_noise else {}
        sample, t = torch.ones(1, 1, 1, 1, dtype=torch.float32, device="cpu"), self.scheduler.timesteps[0]
        try:
            sample = self.scheduler.step(self.scheduler.scale_model_input(sample, t), t, sample, **draws).prev_sample
        except Exception as error:
            raise ValueError(f"`scheduler` must be able to make a step; got {error}, from {name}.") from error
        rule = "`scheduler` must not have zero terminal SNR with epsilon prediction, which divides by 0"
        _check(torch.isfinite(sample).all(), rule, name)

    @contextmanager
    def hold_scheduler(self, num_inference_steps: int, device: torch.device):
        """Reserve the scheduler, which holds the state of one call; check and yield the number of timesteps."""
        key, token = id(self.scheduler), object()
        is_free = self._held_schedulers.setdefault(key, token) is token  # one atomic operation
        rule = "`scheduler` must not serve two calls at once: give each thread its own pipeline and scheduler"
        _check(is_free, rule, f"a {type(self.scheduler).__name__} that is in use")
        try:
            self.check_timesteps(num_inference_steps)
            yield len(self.set_timesteps(num_inference_steps, device))
        finally:
            self._current_timestep = None
            del self._held_schedulers[key]

    def check_size(self, height: int, width: int) -> None:
        """Raise a `ValueError` unless VAE and UNet can downsample `height` and `width` (pixels) without remainder."""
        multiple = self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        for name, value in (("height", height), ("width", width)):
            is_size = isinstance(value, numbers.Integral) and 0 < value <= 2**14 and value % multiple == 0
            _check(is_size, f"`{name}` must be a positive multiple of {multiple}, at most {2**14}", _short(value))

    def check_numbers(self, **values) -> None:
        """Raise a `ValueError` unless the given steps, scales, ends of guidance and chunk size are in their ranges."""
        ranges = {
            "image_guidance_scale": (numbers.Real, 0, 1000),
            "pose_guidance_scale": (numbers.Real, 0, 1000),
            "guidance_start": (numbers.Real, 0, 1),
            "guidance_stop": (numbers.Real, values.get("guidance_start", 0), 1),
            "chunk_size": (numbers.Integral, 1, sys.maxsize),
        }
        if "num_inference_steps" in values:
            config = self.scheduler.config
            least = 1 if config.get("skip_prk_steps", True) else self.scheduler.pndm_order
            ranges["num_inference_steps"] = (numbers.Integral, least, config.num_train_timesteps)
        for name, value in values.items():
            kind, least, most = ranges[name]
            is_inside = isinstance(value, kind) and least <= value <= most
            rule = f"must be a {'whole' if kind is numbers.Integral else 'finite'} number from {least} to {most}"
            _check(is_inside, f"`{name}` {rule}", _short(value))

    @staticmethod
    def check_video_inputs(batch_size, num_frames, cell_shape, frame_indices, latents, generator) -> list[int]:
        """Check the arguments that depend on the number of videos and frames; return the indices to render."""
        given, indices = range(num_frames) if frame_indices is None else frame_indices, []
        with suppress(TypeError, ValueError, RuntimeError):  # one more than there can be, since it may be endless
            indices = [operator.index(i) for i in itertools.islice(given, num_frames + 1)]
        is_selection = indices and len(set(indices)) == len(indices) and set(indices) <= set(range(num_frames))
        rule = f"`frame_indices` must be one or more different integers in range({num_frames})"
        _check(is_selection, rule, _short(frame_indices))
        if latents is not None:
            _check(isinstance(latents, torch.Tensor), "`latents` must be a tensor", type(latents))
            values = _to_array(latents, "latents", (-1e4, 1e4), "be finite noise, at most 1e4 in size")
            _check(values.dtype.kind == "f", "`latents` must be floating-point noise", latents.dtype)
            shapes = [(1, *cell_shape), (num_frames, *cell_shape), (batch_size, num_frames, *cell_shape)]
            _check(values.shape in shapes, f"`latents` must have one of the shapes {shapes}", values.shape)
        generators = generator if isinstance(generator, list) else [generator] * batch_size
        is_whole = len(generators) == batch_size
        _check(is_whole, f"`generator` must be one, or one per video ({batch_size})", len(generators))
        for one in generators:
            is_generator = isinstance(one, torch.Generator) or generator is None
            _check(is_generator, "`generator` must be a torch.Generator or a list of them", type(one))
        return indices

    def prepare_image(self, image: Any, height: int, width: int) -> list[torch.Tensor]:
        """Fit all photos into canvases; return pixel values `(P, 3, height, width)` in `[-1, 1]` for each video."""
        is_array = isinstance(image, (np.ndarray, torch.Tensor)) and not getattr(image, "is_nested", False)
        is_batch = isinstance(image, (list, tuple)) or (is_array and image.ndim == 4)
        subjects = [list(p) if isinstance(p, (list, tuple)) else [p] for p in (image if is_batch else [image])]
        _check(subjects and all(subjects), "`image` must hold at least one photo of each subject", _short(image))
        return [torch.stack([fit_image(photo, height, width) for photo in photos]) for photos in subjects]

    def prepare_pose_maps(self, pose_maps: Any, height: int, width: int, batch_size: int) -> torch.Tensor:
        """Fit all pose maps and resize them to latent size: `(B, F, 2, h, w)`, float32, in `[0, 1]`."""
        is_iuv = not isinstance(pose_maps, (np.ndarray, torch.Tensor))
        if not is_iuv:
            pose_maps = _to_array(pose_maps, "pose_maps", (0, 1), "lie in [0, 1] and be finite")
            is_clip = pose_maps.ndim in (4, 5) and pose_maps.shape[-3] == 2 and pose_maps.dtype.kind == "f"
            is_iuv = pose_maps.ndim in (4, 5) and pose_maps.shape[-1] == 3 and pose_maps.dtype == np.uint8
            rule = "`pose_maps` must be floating point with the shape (F, 2, H, W) or (B, F, 2, H, W)"
            _check(is_clip or is_iuv, rule, f"{pose_maps.dtype} {pose_maps.shape}")
            videos = list(pose_maps) if pose_maps.ndim == 5 else [pose_maps]
        else:
            is_list = isinstance(pose_maps, (list, tuple)) and len(pose_maps) > 0
            _check(is_list, "`pose_maps` must be a tensor, an array or a list of IUV images", type(pose_maps))
            is_nested = [isinstance(frames, (list, tuple)) for frames in pose_maps]
            is_uniform = all(is_nested) or not any(is_nested)
            _check(is_uniform, "`pose_maps` must be a list of IUV images or a list of such lists", "a mixture")
            videos = list(pose_maps) if all(is_nested) else [pose_maps]
            lengths = [len(frames) for frames in videos]
            is_equal = len(set(lengths)) == 1 and lengths[0] > 0
            _check(is_equal, "`pose_maps` must hold equally many frames per video, at least 1", lengths)
        is_whole = len(videos) in (1, batch_size)
        _check(is_whole, f"`pose_maps` must be one sequence, or one per video ({batch_size})", len(videos))

        latent_size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        prepared, sizes = [], set()
        for index, frame in itertools.chain.from_iterable(map(enumerate, videos)):
            name = f"pose_maps[{index}]"
            pose_map = iuv_to_pose_map(frame, name) if is_iuv else torch.from_numpy(frame.astype(np.float32))
            sizes.add(tuple(pose_map.shape[-2:]))
            prepared.append(resize_pose_maps(fit_pose_maps(pose_map[None], height, width), *latent_size))
        _check(len(sizes) == 1, "`pose_maps` must all have the same size", f"(H, W) of {sorted(sizes)}")
        return torch.cat(prepared).unflatten(0, (len(videos), -1)).cpu().expand(batch_size, -1, -1, -1, -1)

    def encode_image(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode canvases `(P, 3, H, W)` in `[-1, 1]` into states `(P, T, D)` and scaled latents `(P, C, h, w)`."""
        models = (self.vae, self.image_encoder, self.feature_extractor)
        image_embeds, image_latents = encode_reference(pixel_values, *models, self.config.image_range)
        size = (self.vae.config.latent_channels, *(side // self.vae_scale_factor for side in pixel_values.shape[-2:]))
        got = f"{tuple(image_latents.shape[1:])} from {type(self.vae).__name__}"
        _check(image_latents.shape[1:] == size, f"`vae` must encode these pictures to latents of shape {size}", got)
        states = self.adapter(image_embeds.to(self.adapter.dtype), image_latents.to(self.adapter.dtype))
        return states if self.unet is None else states.to(self.unet.dtype), image_latents

    def encode_null_image(self, height: int, width: int, device: torch.device) -> torch.Tensor:
        """Return the states `(1, T, D)` of a black picture, which also replaces the photo when training drops it."""
        return self.encode_image(torch.full((1, 3, height, width), -1.0, device=device, dtype=torch.float32))[0]

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> torch.Tensor:
        """Reset the scheduler and return its timesteps, which may be more than `num_inference_steps`."""
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if hasattr(self.scheduler, "set_begin_index"):  # otherwise it infers the step from `t`, which may repeat
            self.scheduler.set_begin_index(0)
        self._num_timesteps = len(self.scheduler.timesteps)
        return self.scheduler.timesteps

    def prepare_latents(self, image_latents, timesteps, generator=None, latents=None) -> torch.Tensor:
        """Return the start of one video, float32 `(1 or F, C, h, w)`: the photo's latents `(1, C, h, w)`, noised.

        All frames share the noise. If unit noise is given as `latents`, it is that at the first noise level instead.
        """
        device = image_latents.device
        if latents is not None:
            return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        noise = randn_tensor(image_latents.shape, generator=generator, device=device, dtype=torch.float32)
        return self.scheduler.add_noise(image_latents.float(), noise, timesteps[:1])

    def draw_video(self, b, image_latents, timesteps, generator=None, latents=None):
        """Draw the random numbers of video `b` of a call: the start, the photo that each step sees, and the generator
        of whose copies all frames draw the noise of the steps. Its photos have the latents `(P, C, h, w)`."""
        generator = generator[b] if isinstance(generator, list) else generator
        latents = latents[b] if latents is not None and latents.ndim == 5 else latents
        start = self.prepare_latents(image_latents[:1], timesteps, generator, latents)
        device = torch.device("cpu") if generator is None else generator.device
        draw = {"generator": generator, "device": device, "dtype": torch.int64}
        seed = torch.randint(2**63 - 1, (1,), **draw).item()
        photo_indices = torch.randint(len(image_latents), (len(timesteps),), **draw).tolist()
        return start, photo_indices, torch.Generator(device).manual_seed(seed)

    def prepare_pose_windows(self, pose_maps: torch.Tensor, frame_indices: Sequence[int], device) -> torch.Tensor:
        """Turn `(F, 2, h, w)` in `[0, 1]` into windows `(frames, 2 * (2 * r + 1), h, w)` in `config.pose_range`."""
        low, high = self.config.pose_range
        windows = torch.stack([pose_window(pose_maps, index, self.pose_radius) for index in frame_indices])
        return (low + (high - low) * windows).to(device)

    def shared_predictions(self, start: torch.Tensor) -> dict | None:
        """Return a dict for the predictions of the first step that all frames of a video share, if they can share."""
        # A hook with a state, such as kept attention, needs batches of one size. diffusers lists no hooks publicly.
        hooks = [layer._diffusers_hook.hooks for layer in _layers(self.unet) if hasattr(layer, "_diffusers_hook")]
        has_state = any(hook._is_stateful for registry in hooks for hook in registry.values())
        return {} if len(start) == 1 and isinstance(self.unet, nn.Module) and not has_state else None

    def prepare_chunk(self, start, pose_maps, frame_indices, generator, device):
        """Return a chunk's latents and pose windows, and the keyword arguments of its `scheduler.step`."""
        latents = start.expand(len(pose_maps), -1, -1, -1)[frame_indices].to(device)
        windows = self.prepare_pose_windows(pose_maps, frame_indices, device)
        draws = [generator.clone_state() for _ in frame_indices]
        return latents, windows, {"generator": draws} if self._step_draws_noise else {}

    guidance_branches = staticmethod(guidance_branches)

    def predict_noise(self, latents, t, windows, states, null_states, branches, unposed=None) -> torch.Tensor:
        """Predict the noise of a chunk of frames, with guidance: `predict_branches`, weighted as `branches` say."""
        sees = [(sees_photo, sees_pose) for _, sees_photo, sees_pose in branches]
        inputs = latents, t, windows, states, null_states, sees, unposed
        return combine_predictions(self.predict_branches(*inputs), branches)

    def predict_branches(self, latents, t, windows, states, null_states, sees, unposed=None):
        """Predict the noise (or the scheduler's other `prediction_type`) of a chunk, once for each of `sees`.

        Each entry of `sees` says whether a prediction sees the photo and the pose. The UNet's batch has this order.
        Latents and predictions have shape `(F, C, h, w)`, windows `(F, 2 * (2 * r + 1), h, w)`, and states `(1, T, D)`
        in the UNet's dtype. If all frames have the same latents, the dict `unposed` keeps the predictions without
        pose, which all share: the UNet gets one row for each that it lacks.
        """
        scaled = self.scheduler.scale_model_input(latents, t)
        predictions = {} if unposed is None else dict(unposed)
        missing = [pair for pair in sees if pair not in predictions]
        counts = [len(latents) if sees_pose or unposed is None else 1 for _, sees_pose in missing]
        if missing:
            rows, hidden = [], []
            for (sees_photo, sees_pose), n in zip(missing, counts):
                poses = windows[:n] if sees_pose else torch.zeros_like(windows[:n])
                rows.append(torch.cat([scaled[:n], poses], dim=1))
                hidden.append((states if sees_photo else null_states).expand(n, -1, -1))
            hidden = torch.cat(hidden)
            output = self.unet(torch.cat(rows).to(hidden.dtype), t, encoder_hidden_states=hidden, return_dict=False)[0]
            predictions |= zip(missing, output.float().split(counts))
        if unposed is not None:
            unposed |= {pair: prediction for pair, prediction in predictions.items() if not pair[1]}
        return {pair: predictions[pair].expand_as(latents) for pair in sees}

    def decode_latents(self, latents: torch.Tensor, generator: list[torch.Generator] | None = None) -> torch.Tensor:
        """Decode scaled latents `(F, C, h, w)` into frames `(F, 3, H, W)` in `[0, 1]`, float32 on the CPU."""
        # A VAE that draws noise, such as `ConsistencyDecoderVAE`, takes one generator per frame.
        draws = {} if generator is None or not hasattr(self.vae, "decoder_unet") else {"generator": generator}
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels = self.vae.decode(latents, return_dict=False, **draws)[0]
        low, high = self.config.image_range
        return ((pixels.float() - low) / (high - low)).clamp(0, 1).cpu()

    def run_safety_checker(self, frames: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, list[bool]]:
        """Blacken the frames `(F, 3, H, W)` in `[0, 1]` that the safety checker flags; return frames and flags."""
        image_size = self.safety_checker.config.vision_config.image_size
        clip_input = clip_pixel_values(frames * 2.0 - 1.0, image_size, self.feature_extractor)
        return self.safety_checker(images=frames, clip_input=clip_input.to(device, self.safety_checker.dtype))

    def decode_chunk(self, latents, output_type, generator, device) -> tuple[Any, list[bool] | None]:
        """Turn latents into frames on the CPU, of the type that a call asks for; return them and their flags."""
        if output_type == "latent":
            return latents.cpu(), None
        draws = None if generator is None else [generator.clone_state() for _ in latents]
        frames, flags = self.decode_latents(latents, draws), None
        if self.safety_checker is not None:
            frames, flags = self.run_safety_checker(frames, device)
        if output_type in ("pil", "np"):
            frames = frames.permute(0, 2, 3, 1).numpy()  # [F, 3, H, W] -> [F, H, W, 3]
        if output_type == "pil":
            frames = [Image.fromarray(levels) for levels in (frames * 255).round().astype(np.uint8)]
        return frames, flags

    def check_call(self, call: dict[str, Any]) -> SimpleNamespace:
        """Check and prepare all arguments of a call by name, before any model runs; `None` becomes the default."""
        call |= {name: self.config[f"default_{name}"] for name in _DEFAULTS if call[name] is None}
        self.check_components()
        self.check_size(call["height"], call["width"])
        self.check_numbers(**{name: call[name] for name in ("guidance_start", *_DEFAULTS[2:], "chunk_size")})
        call = SimpleNamespace(**call)
        check_output_type(call.output_type)
        is_flag = isinstance(call.return_dict, (bool, np.bool_))
        _check(is_flag, "`return_dict` must be True or False", _short(call.return_dict))
        callback, known = call.callback_on_step_end, self._callback_tensor_inputs
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            call.callback_on_step_end_tensor_inputs = callback.tensor_inputs
        names = call.callback_on_step_end_tensor_inputs
        if callback is not None:
            try:
                is_class = isinstance(callback, type)  # instead of an object of the class
                inspect.signature(None if is_class else callback).bind(self, 0, 0, {})
            except Exception as error:  # TypeError, or what the `repr` of an odd object raises
                rule = "`callback_on_step_end` must be a function of pipeline, step, timestep and tensors"
                raise ValueError(f"{rule}; got {_short(callback)}.") from error
        are_known = isinstance(names, (list, tuple)) and all(isinstance(n, str) and n in known for n in names)
        _check(are_known, f"`callback_on_step_end_tensor_inputs` must be a list of {known}", _short(names))
        call.photos = self.prepare_image(call.image, call.height, call.width)  # B of [P, 3, H, W]
        call.pose_maps = self.prepare_pose_maps(call.pose_maps, call.height, call.width, len(call.photos))
        shape = *call.pose_maps.shape[:2], (self.vae.config.latent_channels, *call.pose_maps.shape[-2:])
        call.frame_indices = self.check_video_inputs(*shape, call.frame_indices, call.latents, call.generator)
        # examples/community: left out
        layers = self._lora_layers()
        in_use = [layer.merged_adapters if layer.merged else layer.active_adapters for layer in layers]
        in_use = [name for layer, names in zip(layers, in_use) for name in names if not layer.disable_adapters]
        if self._few_steps_of not in [None, *in_use]:
            logger.warning(f"The few steps need their LoRA {self._few_steps_of!r}, which is not active.")
        # examples/community: end
        call.device = self._execution_device  # once, since diffusers looks through all modules for it
        with self.hold_scheduler(call.num_inference_steps, call.device):
            return call

    @torch.no_grad()
    def sample_chunks(self, call: SimpleNamespace) -> Iterator[tuple[int, int, Any, list[bool] | None]]:
        """Sample a checked call chunk by chunk: the video's index, the first frame's place in it, frames and flags."""
        scheduler, chunks = self.scheduler, split_frames(call.frame_indices, call.chunk_size)
        last = len(call.photos) - 1, len(chunks) - 1
        with (
            ExitStack() as at_the_end,
            self.hold_scheduler(call.num_inference_steps, call.device) as num_timesteps,
            self.progress_bar(total=len(call.photos) * len(chunks) * num_timesteps) as progress_bar,
        ):
            at_the_end.callback(self.maybe_free_model_hooks)
            self._interrupt, call.null_states = False, None
            for b, (number, (chunk, count)) in itertools.product(range(len(call.photos)), enumerate(chunks)):
                if number == 0:
                    video = self._begin_video(call, b)
                latents = self._denoise(call, video, chunk, count, progress_bar)
                frames = self.decode_chunk(latents, call.output_type, video.generator, call.device)
                result = b, number * len(chunk), *frames
                if self.interrupt or (b, number) == last:
                    break  # a reader may take the last frame and never come back
                yield result
                if self.interrupt:
                    return
                rule = "`scheduler` must stay the same until the last frame"
                _check(self.scheduler is scheduler, rule, f"another {type(self.scheduler).__name__}")
        yield result

    def _begin_video(self, call: SimpleNamespace, b: int) -> SimpleNamespace:
        """Encode the photos of a video and draw its random numbers."""
        device, video = call.device, SimpleNamespace(pose_maps=call.pose_maps[b])
        video.states, image_latents = self.encode_image(call.photos[b].to(device))
        draws = self.set_timesteps(call.num_inference_steps, device), call.generator, call.latents
        video.start, video.photo_indices, video.generator = self.draw_video(b, image_latents, *draws)
        video.unposed = self.shared_predictions(video.start)
        return video

    def _denoise(self, call, video: SimpleNamespace, chunk: list[int], count: int, progress_bar) -> torch.Tensor:
        """Return the denoised latents of the first `count` frames of `chunk`; encode the null image when needed."""
        timesteps = self.set_timesteps(call.num_inference_steps, call.device)
        start = video.start, video.pose_maps, chunk, video.generator, call.device
        latents, windows, step_kwargs = self.prepare_chunk(*start)
        self._image_guidance_scale = call.image_guidance_scale
        self._pose_guidance_scale = call.pose_guidance_scale
        for i, t in enumerate(timesteps):
            if self.interrupt:
                break
            self._current_timestep = t
            interval = i, len(timesteps), call.guidance_start, call.guidance_stop
            branches = self.guidance_branches(self.image_guidance_scale, self.pose_guidance_scale, *interval)
            if call.null_states is None and not all(sees_photo for _, sees_photo, _ in branches):
                call.null_states = self.encode_null_image(call.height, call.width, call.device)
            inputs = windows, video.states[video.photo_indices[i]][None], call.null_states, branches
            noise_pred = self.predict_noise(latents, t, *inputs, video.unposed if i == 0 else None)
            latents = self.scheduler.step(noise_pred, t, latents, **step_kwargs).prev_sample
            if call.callback_on_step_end is not None:
                tensors = {"latents": latents[:count], "noise_pred": noise_pred[:count]}
                given = {name: tensors[name] for name in call.callback_on_step_end_tensor_inputs}
                outputs, kept = call.callback_on_step_end(self, i, t, given), tensors["latents"]
                returned = outputs.pop("latents", kept) if isinstance(outputs, dict) else None
                rule = "`callback_on_step_end` must return a dict, whose dense `latents` keep their shape"
                _check(_is_dense(returned) and returned.shape == kept.shape, rule, _short(returned))
                padding = returned[-1:].expand(len(chunk) - count, -1, -1, -1)
                latents = torch.cat([returned, padding]).to(call.device, torch.float32)
            progress_bar.update()
        self._current_timestep = None
        return latents[:count]

    def stream(self, image, pose_maps, **kwargs) -> Iterator[Image.Image | np.ndarray | torch.Tensor]:
        """Yield the frames of a call one by one, video after video, as soon as their chunk is done.

        The arguments are those of [`~DreamPosePipeline.__call__`] but `return_dict`, checked at once, and the frames
        are the same: PIL images, `(H, W, 3)` arrays, `(3, H, W)` tensors or `(C, h, w)` latents. Finished ones are not
        kept. Until the last frame, or until the iterator is closed, the scheduler must stay and serves no other call.
        """
        _check("return_dict" not in kwargs, "`return_dict` must be left out", "`return_dict`")
        call = inspect.signature(self.__call__).bind(image, pose_maps, **kwargs)
        call.apply_defaults()
        return (frame for _, _, chunk, _ in self.sample_chunks(self.check_call(call.arguments)) for frame in chunk)

    def __call__(
        self,
        image: Image.Image | np.ndarray | torch.Tensor | list,
        pose_maps: torch.Tensor | np.ndarray | list[Image.Image] | list[list[Image.Image]],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        image_guidance_scale: float | None = None,
        pose_guidance_scale: float | None = None,
        frame_indices: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        chunk_size: int = 8,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        guidance_start: float = 0.0,
        guidance_stop: float | None = None,
    ) -> DreamPosePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `list`):
                The photo; arrays and tensors hold 8-bit values or values in `[0, 1]`. A batch or list of `B` photos
                gives `B` videos. A list of lists gives several photos per subject: sampling starts from the first, and
                every step sees one drawn at random. The whole photo is fitted in and its border pixels are repeated.
            pose_maps (`torch.Tensor`, `np.ndarray` or `list`):
                The pose sequence of all videos: DensePose U and V as `(F, 2, H, W)` in `[0, 1]`, or `F` IUV images
                (R = V, G = U, B = I) as a list or one 8-bit array `(F, H, W, 3)`. Or one sequence per video:
                `(B, F, 2, H, W)`, `(B, F, H, W, 3)`, or `B` such lists. The poses are fitted in like the photo.
            height, width (`int`, *optional*, default to those in the config): Size of the frames in pixels.
            num_inference_steps (`int`, *optional*, defaults to `config.default_num_inference_steps`): Denoising steps.
            image_guidance_scale, pose_guidance_scale (`float`, *optional*, default to those in the config):
                How strongly the frames follow the photo and the poses: `s_I` and `s_p` of the paper, from 0 to 1000. 1
                means no guidance, 0 ignores them. If `s_I` is 1 or both are equal, one of three predictions is saved.
            frame_indices (`Sequence[int]`, *optional*):
                Indices of the frames to render, in this order; all by default. They change frames by rounding only.
            generator (`torch.Generator` or `list`, *optional*):
                Fixes the result; a list has one per video. All frames of a video share the noise of start and steps.
            latents (`torch.Tensor`, *optional*):
                Unit noise to start from instead of the noised photo: shape `(1, C, h, w)` for all frames,
                `(F, C, h, w)` or `(B, F, C, h, w)`. It is multiplied by the scheduler's `init_noise_sigma`.
            chunk_size (`int`, *optional*, defaults to 8): Most frames at once: changes memory, speed, rounding.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, *optional*, defaults to `True`): Return a [`DreamPosePipelineOutput`], not a tuple.
            callback_on_step_end (`Callable`, `PipelineCallback` or `MultiPipelineCallbacks`, *optional*):
                Called as `callback(pipeline, step, timestep, callback_kwargs)` after each step of each chunk; `step`
                restarts at 0 with each chunk. It returns a dict, whose `latents` replace the chunk's. It may set
                `pipeline._image_guidance_scale` and `pipeline._pose_guidance_scale` for the rest of the chunk. If it
                sets `pipeline._interrupt`, the call ends with this chunk; later frames are missing (PIL) or 0.
            callback_on_step_end_tensor_inputs (`list`, *optional*, defaults to `["latents"]`):
                Tensors in `callback_kwargs`: `"latents"` and `"noise_pred"`, both `(frames of the chunk, C, h, w)`.
            guidance_start, guidance_stop (`float`, *optional*, default to 0 and to `config.default_guidance_stop`):
                Guide only the steps `i` of `n` with `guidance_start <= i / n < guidance_stop` (arXiv:2404.07724); `i`
                begins at 0, and `n` is the number of the scheduler's timesteps, which Heun has more of than steps. In
                all others both scales are 1, which needs one UNet prediction.

        Returns:
            [`DreamPosePipelineOutput`] or `tuple`: The frames and the safety checker's flags (`None` without one).
        """
        call = self.check_call({name: value for name, value in locals().items() if name != "self"})
        sizes = len(call.photos), len(call.frame_indices)
        frames, nsfw_content_detected = collect_frames(self.sample_chunks(call), *sizes)
        if not return_dict:
            return (frames, nsfw_content_detected)
        return DreamPosePipelineOutput(frames=frames, nsfw_content_detected=nsfw_content_detected)


# examples/community: left out
for _name in """check_lora load_lora_weights unload_lora_weights fuse_lora unfuse_lora set_adapters delete_adapters
    enable_lora disable_lora get_active_adapters get_list_adapters""".split():
    setattr(DreamPosePipeline, _name, _lora_method(getattr(DreamPosePipeline, _name)))
# examples/community: end
