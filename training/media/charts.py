# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Charts as pictures: heat maps of tables, and line charts."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.media.pictures import picture_grid


_HEAT = ((68, 1, 84), (33, 145, 140), (253, 231, 37))  # smallest, middle and largest value
_INKS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")


def heat_map(
    values: Sequence[Sequence[float | None]], titles: Sequence[str], row_titles: Sequence[str], digits: int = 2
) -> Image.Image:
    """Draw a table of numbers on colours from dark violet (smallest) through green to yellow (largest).

    `titles` stand above the columns and `row_titles` to the left of the rows. Numbers have `digits` decimal places;
    `None` gives a grey cell. The picture is RGB. Raise a `ValueError` if there is no number.
    """
    known = [value for row in values for value in row if value is not None]
    if not known:
        raise ValueError(f"`values` must hold a number, got {values}.")
    least, most = min(known), max(known)
    font = ImageFont.load_default(14)

    def cell(value: float | None) -> Image.Image:
        share = 0.5 if value is None or most == least else (value - least) / (most - least)
        color = (
            (160, 160, 160)
            if value is None
            else tuple(int(round(np.interp(share, (0, 0.5, 1), channel))) for channel in zip(*_HEAT, strict=True))
        )
        picture = Image.new("RGB", (84, 44), color)
        text = "–" if value is None else f"{value:.{digits}f}"
        ink = "black" if picture.convert("L").getpixel((0, 0)) > 128 else "white"
        ImageDraw.Draw(picture).text((42, 22), text, ink, font, anchor="mm")
        return picture

    return picture_grid([[cell(value) for value in row] for row in values], titles, gap=2, row_titles=row_titles)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that span `low` to `high`."""
    rough = (high - low) / count or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def line_chart(
    curves: Mapping[str, Sequence[tuple[float, float]]], title: str, size: tuple[int, int] = (560, 320)
) -> Image.Image:
    """Draw up to six curves over one horizontal axis, each with its name in its own colour, as an RGB picture.

    Each curve holds its points `(x, y)` from left to right; `size` is width and height in pixels. Raise a `ValueError`
    if there is no curve or too many, or if one has no point.
    """
    if not 1 <= len(curves) <= len(_INKS) or not all(map(len, curves.values())):
        lengths = {name: len(points) for name, points in curves.items()}
        raise ValueError(f"`curves` must hold 1 to {len(_INKS)} curves of points, got lengths {lengths}.")
    coordinates = zip(*(point for points in curves.values() for point in points), strict=True)
    axes = [_ticks(min(values), max(values)) for values in coordinates]
    (left, top), (right, bottom) = (56, 48), (size[0] - 20, size[1] - 28)

    def place(x: float, y: float) -> tuple[float, float]:
        shares = [(value - ticks[0]) / (ticks[-1] - ticks[0]) for value, ticks in zip((x, y), axes, strict=True)]
        return left + shares[0] * (right - left), bottom - shares[1] * (bottom - top)

    picture, font = Image.new("RGB", size, "white"), ImageFont.load_default(12)
    draw = ImageDraw.Draw(picture)
    for x in axes[0]:
        draw.line([place(x, axes[1][0]), place(x, axes[1][-1])], "#e0e0e0")
        draw.text((place(x, 0)[0], bottom + 14), f"{x:,.10g}", "black", font, anchor="mm")
    for y in axes[1]:
        draw.line([place(axes[0][0], y), place(axes[0][-1], y)], "#e0e0e0")
        draw.text((left - 8, place(0, y)[1]), f"{y:,.10g}", "black", font, anchor="rm")
    draw.text((size[0] / 2, 14), title, "black", ImageFont.load_default(14), anchor="mm")
    start = left
    for (name, points), ink in zip(curves.items(), _INKS, strict=False):
        draw.line([place(*point) for point in points], ink, width=2, joint="curve")
        draw.text((start, 34), name, ink, font, anchor="lm")
        start += font.getlength(name) + 16
    return picture
