# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Frames that a clip lacks: finding them by the numbers in file names, and filling them from their neighbours."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np


logger = logging.getLogger(__name__)


def frame_numbers(names: Sequence[str], argument: str = "poses") -> list[int] | None:
    """Return the number that counts the frames in their sorted file names, or `None` if no number does.

    Of several numbers, such as the frame and its time, that one counts which rises from each file to the next, mostly
    by its smallest step, and whose step is the smallest. Errors name the `argument`.

    Raises:
        ValueError: If two files have the same numbers, or a file is named unlike most others. Such a file, often a
            cover or a copy, is refused, since it would be shown as a frame.
    """
    parts = [re.split(r"([0-9]+)", Path(name).stem) for name in names]
    texts = [tuple(part[::2]) for part in parts]  # the text around the numbers
    _check_alike(names, texts, argument)
    if len(set(texts)) > 1:
        return None
    rows = [tuple(map(int, part[1::2])) for part in parts]
    for index, (first, second) in enumerate(pairwise(rows)):
        if first == second and (first or names[index] == names[index + 1]):
            number = f"the number {'_'.join(map(str, first))}" if first else "one name"
            raise ValueError(
                f"`{argument}` must have one file per frame, got {number} twice: {names[index]!r} and "
                f"{names[index + 1]!r}."
            )
    columns = [list(column) for column in zip(*rows) if len(set(column)) > 1]
    counting = columns if len(columns) == 1 else filter(_counts, columns)
    return min(counting, key=_smallest_step, default=None)


def _check_alike(names: Sequence[str], texts: Sequence[tuple[str, ...]], argument: str) -> None:
    usual, count = Counter(texts).most_common(1)[0]
    others = [name for name, text in zip(names, texts) if text != usual]
    if others and len(usual) > 1 and count > len(others):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            f"`{argument}` must have files whose names differ only in their numbers, got {others[0]!r}{more} beside "
            f"{names[texts.index(usual)]!r}. Move it away, or name it like the others if it is a frame."
        )


def _smallest_step(numbers: Sequence[int]) -> int:
    return min(second - first for first, second in pairwise(numbers))


def _counts(numbers: Sequence[int]) -> bool:
    """Return whether numbers rise from each file to the next, and mostly by their smallest step."""
    step = _smallest_step(numbers)
    return step > 0 and 2 * sum(second - first == step for first, second in pairwise(numbers)) > len(numbers) - 1


def insert_missing(
    names: Sequence[str],
    frames: Sequence[Any],
    max_gap: int,
    missing: Any = None,
    argument: str = "poses",
    source: str | os.PathLike | None = None,
) -> list[Any]:
    """Insert `missing` for each number that the sorted `names` leave out. Errors name the `argument`.

    The smallest distance of two numbers is the step of the clip, so that 0, 5, 10 leaves nothing out. Log a notice
    about the `source`, the folder or file of the names, if no number counts the frames.

    Raises:
        ValueError: As in [`frame_numbers`], or if more than `max_gap` numbers in a row are missing.
    """
    numbers = frame_numbers(names, argument) if names else None
    if numbers is None:
        if len(names) > 1:
            _note_unnumbered(f"`{argument}`" if source is None else repr(str(source)), names[0], names[1])
        return list(frames)
    step = _smallest_step(numbers)
    lengths = [round(Fraction(second - first, step)) - 1 for first, second in pairwise(numbers)]
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


@lru_cache(maxsize=None)  # once for each source, which may be read several times
def _note_unnumbered(source: str, first: str, second: str) -> None:
    logger.warning(
        f"No number counts the frames of {source}, such as {first!r} and {second!r}: they are taken as consecutive."
    )


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
