# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Frames of a clip, from a video or from a folder of pictures."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from PIL import Image

from training.media.pictures import (
    MAX_PIXELS,
    PICTURE_SUFFIXES,
    UnreadablePictures,
    iterate_pictures,
    list_files,
    read_photo,
)
from training.poses.gaps import frame_numbers, insert_missing


class ClipFrames:
    """Frames of a clip, upright and RGB. They are read anew each time, so that a long clip needs no memory.

    Args:
        source (`str` or `os.PathLike`): A video, or a folder with one picture per frame.
        square_pixels (`tuple[int, int]`, *optional*):
            Proportion of width and height that the frames have when their pixels are square. Frames of another
            proportion were squeezed; their shorter side is stretched.
    """

    def __init__(self, source: str | os.PathLike, square_pixels: tuple[int, int] | None = None):
        self.source = Path(source)
        self.square_pixels = square_pixels
        self.names = [file.name for file in list_files(self.source, PICTURE_SUFFIXES)] if self.source.is_dir() else []

    def __iter__(self) -> Iterator[Image.Image]:
        try:
            yield from map(self.unsqueeze, iterate_pictures(self.source))
        except UnreadablePictures as error:
            argument = "frames_dir" if self.source.is_dir() else "video_dir"
            raise UnreadablePictures(str(error).replace("`input`", f"`{argument}`")) from error

    def __len__(self) -> int:
        return len(self.names) if self.source.is_dir() else self._num_video_frames

    @cached_property
    def _num_video_frames(self) -> int:
        return sum(1 for _ in iterate_pictures(self.source))

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the first frame in pixels. Raise [`UnreadablePictures`] if there is none."""
        pictures = (
            map(self.unsqueeze, (read_photo(self.source / name, "frames_dir") for name in self.names))
            if self.source.is_dir()
            else iter(self)
        )
        first = next(pictures, None)
        if first is None:
            raise UnreadablePictures(f"{self.source.name} has no frames.")
        return first.size

    @cached_property
    def numbers(self) -> list[int] | None:
        """Numbers in the pictures' names, empty if no single number counts the pictures; `None` for a video."""
        return (frame_numbers(self.names, "frames_dir") or []) if self.names else None

    def places(self, max_gap: int) -> list[int]:
        """Return the place of each picture in the clip, where a missing number has a place too; `[]` for a video.

        Raises:
            ValueError: If two pictures have one number, or more than `max_gap` numbers in a row are missing.
        """
        if not self.names:
            return []
        named = {"argument": "frames_dir", "source": self.source}
        indices = insert_missing(self.names, range(len(self.names)), max_gap, **named)
        return [place for place, index in enumerate(indices) if index is not None]

    def unsqueeze(self, picture: Image.Image) -> Image.Image:
        """Stretch the shorter side of a squeezed picture until its pixels are square."""
        size = unsqueezed_size(picture.size, self.square_pixels)
        return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def unsqueezed_size(size: tuple[int, int], square_pixels: tuple[int, int] | None) -> tuple[int, int]:
    """Return width and height with the proportion `square_pixels`; neither side becomes shorter.

    Raises:
        UnreadablePictures: If the result has more pixels than a picture may have.
    """
    if square_pixels is None:
        return size
    (width, height), (across, down) = size, square_pixels
    if width * down >= height * across:
        height = round(width * down / across)
    else:
        width = round(height * across / down)
    if width * height > MAX_PIXELS:
        raise UnreadablePictures(f"`square_pixels` makes frames of {width}x{height}, more than {MAX_PIXELS} pixels.")
    return width, height
