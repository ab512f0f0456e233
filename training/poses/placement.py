# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Place of a driving clip in a photo: one scale and one shift, found on the surface of the two bodies.

A piece of surface is a bin of U and V of one body part. A picture's pieces are an array `[25, 12, 12, 5]`: how many
pixels show a piece, and the sums of their x, y, U and V.
"""

import numpy as np


# Parts that tell where a body stands and how large it is: torso, upper legs and head. Arms and lower legs move.
_STEADY_PARTS = (1, 2, 7, 8, 9, 10, 23, 24)
_FEET = (5, 6)
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

    Returns:
        `tuple[np.ndarray, ...]`: Of the `N` pieces the part `[N]`, the place (x, y) in the frame and in the photo,
            `[N, 2]` each, the mean U and V in the photo, `[N, 2]`, and the photo's pixels `[N]`. The place in the
            frame is that of the photo's mean U and V, so that pieces of a few pixels match exactly.
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
    """Fit the scale, unless it is given, and the shift that bring a frame's steady parts onto the photo's.

    Returns:
        `tuple[float, float, np.ndarray]`: How far the frame agrees with the photo in pose and side, in `[0, 1]`, 0
            where they share too little; the scale; the shift (x, y).
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
    nearness = np.exp(-(pixels * np.log1p(16 * error)).sum() / pixels.sum())
    return shared**4 * nearness, scale, shift


def ground_heights(pieces: np.ndarray, photo: np.ndarray) -> tuple[float, float] | None:
    """Return the height (y) of the lower foot in the frame and in the photo, by the pieces that both show."""
    part, here, there, _, _ = match_pieces(pieces, photo)
    feet = [part == foot for foot in _FEET if (part == foot).sum() > 3]
    return tuple(max(places[foot, 1].mean() for foot in feet) for places in (here, there)) if feet else None


def most_alike(agreement: np.ndarray) -> int:
    """Return the first of the frames that agree with the photo about as well as the best one."""
    return int(np.argmax(agreement >= 0.9 * agreement.max()))


def fit_clip(frames: list[np.ndarray], photo: np.ndarray) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Fit the one similarity of a clip, or return `None` if no frame shares enough of the photo's surface.

    `frames` and `photo` are what [`surface_pieces`] returns. The scale is the weighted median over the frames that
    agree with the photo. The one that agrees best decides the shift, since others may stand elsewhere; its feet come
    onto the photo's ground line.

    Returns:
        `tuple[float, np.ndarray, np.ndarray]`: The scale, the shift (x, y), and the frames' agreement with the photo.
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
    ground = ground_heights(frames[best], photo)
    if ground is not None:
        shift[1] = ground[1] - scale * ground[0]
    return scale, shift, agreement


def fit_silhouettes(masks: list[np.ndarray], photo: np.ndarray) -> tuple[float, np.ndarray]:
    """Fit the scale and the shift (x, y) of a clip by silhouettes `[H, W]`: the frame of the most similar outline
    comes onto the photo's, from head to feet and its middle onto the middle."""

    def extent(mask):
        y, x = np.nonzero(mask)
        return y.min(), y.max() + 1, np.median(x) + 0.5

    top, bottom, middle = extent(photo)
    fits = []
    for mask in masks:
        if mask.any():
            low, high, centre = extent(mask)
            scale = (bottom - top) / (high - low)
            shift = np.array([middle - scale * centre, bottom - scale * high])
            placed = resample(mask, scale, shift, *photo.shape)
            fits.append(((placed & photo).sum() / (placed | photo).sum(), scale, shift))
    _, scale, shift = max(fits, key=lambda fit: fit[0])
    return scale, shift


def resample(pixels: np.ndarray, scale: float, shift: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale and shift a picture, `[H, W, ...]`, into `height` x `width` pixels; each copies the nearest, or is 0."""
    padded = np.pad(pixels, [(1, 1), (1, 1), *[(0, 0)] * (pixels.ndim - 2)])
    rows, columns = (
        np.clip(np.floor((np.arange(size) + 0.5 - move) / scale).astype(int) + 1, 0, side - 1)
        for size, move, side in ((height, shift[1], padded.shape[0]), (width, shift[0], padded.shape[1]))
    )
    return padded[rows[:, None], columns]
