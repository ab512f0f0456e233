# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Frames that a clip lacks: finding them by the numbers in file names, and filling them from their neighbours."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def frame_numbers(names: Sequence[str]) -> list[int] | None:
    """Return the number that counts the frames in their file names, or `None` if no single number does."""
    parts = [re.split(r"([0-9]+)", Path(name).stem) for name in names]
    if len({tuple(part[::2]) for part in parts}) != 1:  # the text around the numbers differs
        return None
    columns = zip(*(map(int, part[1::2]) for part in parts))
    counting = [list(column) for column in columns if len(set(column)) > 1]
    return counting[0] if len(counting) == 1 else None


def insert_missing(
    names: Sequence[str], frames: Sequence[Any], max_gap: int, missing: Any = None, argument: str = "poses"
) -> list[Any]:
    """Insert `missing` for each number that the sorted `names` leave out. Errors name the `argument`.

    The smallest distance of two numbers is the step of the clip, so that 0, 5, 10 leaves nothing out.

    Raises:
        ValueError: If two files have one number, or more than `max_gap` numbers in a row are missing.
    """
    numbers = frame_numbers(names)
    if numbers is None:
        return list(frames)
    distances = [second - first for first, second in zip(numbers, numbers[1:])]
    step = min(distances)
    if step == 0:
        index = distances.index(0)
        raise ValueError(
            f"`{argument}` must have one file per frame, got the number {numbers[index]} twice: {names[index]!r} and "
            f"{names[index + 1]!r}."
        )
    lengths = [round(distance / step) - 1 for distance in distances]
    too_long = [i for i, length in enumerate(lengths) if length > max_gap]
    if too_long:
        gaps = ", ".join(f"{numbers[i] + step}..{numbers[i + 1] - step}" for i in too_long[:3])
        raise ValueError(
            f"`{argument}` must be consecutive frames, of which up to `max_gap` ({max_gap}) in a row may be missing, "
            f"got no frames {gaps}{' and more' if len(too_long) > 3 else ''} after {names[too_long[0]]!r}."
        )
    result = [frames[0]]
    for length, frame in zip(lengths, frames[1:]):
        result += [missing] * length + [frame]
    return result


def fill_gaps(frames: Sequence[Any | None], max_gap: int) -> tuple[list[Any], list[int]]:
    """Replace each `None` with the nearest frame that shows the person; of two equally near, the earlier.

    Returns:
        `tuple[list, list[int]]`: All frames, and the indices of the filled ones.
    Raises:
        ValueError: If a run of missing frames is longer than `max_gap`, or no frame shows a person.
    """
    found = np.array([i for i, frame in enumerate(frames) if frame is not None])
    if not len(found):
        raise ValueError(f"`frames` must show a person, got none in any of {len(frames)}.")
    edges = [-1, *found, len(frames)]
    first, longest = max(((a + 1, b - a - 1) for a, b in zip(edges, edges[1:])), key=lambda gap: gap[1])
    if longest > max_gap:
        raise ValueError(f"`max_gap` must be at least {longest} for the gap at frame {first}, got {max_gap}.")
    nearest = [int(found[np.abs(found - i).argmin()]) for i in range(len(frames))]
    return [frames[i] for i in nearest], [i for i, source in enumerate(nearest) if i != source]
