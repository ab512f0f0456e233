# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Cache of DensePose's detections in the frames of a clip, so that no frame is read twice.

A frame is one file, with its detections and a small picture of it. A file is written when its frame is done, so a
killed run loses one frame, and a damaged file is made again.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.engine.messages import shorten
from training.media.pictures import PICTURE_SUFFIXES, UnreadablePictures, list_files
from training.media.settings_file import partial_path, write_json
from training.media.timing import choose_frames
from training.poses.detections import Detection


_FACTS = "clip.json"
_SHOWN = (512, 512)  # the largest size of the small pictures, which the strip shows
_FORMAT = "1"  # of the files; a change makes old caches unused


@dataclass(frozen=True)
class SeenFrame:
    """A frame's detections, the size of the frame (width, height) in pixels, and the frame as a small picture."""

    detections: list[Detection]
    size: tuple[int, int]
    picture: Image.Image


def cache_key(*parts: str) -> str:
    """Return a short name for a cache from the digests of all that its content depends on."""
    return hashlib.sha256(" ".join((_FORMAT, *parts)).encode()).hexdigest()[:16]


def file_digest(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's pictures."""
    path = Path(path)
    if path.is_dir():
        files = list_files(path, PICTURE_SUFFIXES)
        return hashlib.sha256(str([(file.name, file_digest(file)) for file in files]).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_frame(folder: Path, index: int) -> SeenFrame | None:
    """Return a frame of a cache, or `None` if it is missing or damaged."""
    try:
        with np.load(_frame_path(folder, index)) as file:
            people = enumerate(zip(file["boxes"].tolist(), file["scores"].tolist(), strict=True))
            found = [Detection(tuple(box), file[f"iuv_{index}"], score) for index, (box, score) in people]
            with Image.open(io.BytesIO(file["picture"].tobytes()), formats=["JPEG"]) as picture:
                picture.load()
            return SeenFrame(found, tuple(file["size"].tolist()), picture)
    except Exception:  # NumPy and zipfile raise errors of many types for damaged files
        return None


def _write_frame(folder: Path, index: int, frame: SeenFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    frame.picture.save(picture, "JPEG", quality=90)
    arrays = {f"iuv_{i}": detection.iuv for i, detection in enumerate(frame.detections)}
    arrays |= {"boxes": np.array([detection.box for detection in frame.detections]), "size": np.array(frame.size)}
    arrays |= {"scores": np.array([detection.score for detection in frame.detections], float)}
    arrays |= {"picture": np.frombuffer(picture.getvalue(), np.uint8)}
    path = _frame_path(folder, index)
    partial = partial_path(path)
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def _frame_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.npz"


def _check_names(folder: Path) -> None:
    """Raise a `ValueError` if a file stands where the cache's folders belong, or a folder where its files belong."""
    for path in (folder.parent, folder, folder / _FACTS, *folder.glob("*.npz")):
        is_folder = path in (folder.parent, folder)
        if path.exists() and path.is_dir() != is_folder:
            expected, got = ("a folder", "a file") if is_folder else ("a file", "a folder")
            raise ValueError(
                f"`driving` must find {expected} or nothing at {shorten(str(path))}, where found poses are kept; got"
                f" {got}. Move it away."
            )


def detect_frames(
    folder: Path,
    pictures: Callable[[], Iterator[Image.Image | None]],
    estimator: Callable[[Image.Image], list[Detection]],
    start: int = 0,
    end: int | None = None,
    every: int = 1,
) -> range:
    """Run DensePose on the frames that a cache lacks, and return the numbers of the chosen frames.

    `pictures` starts the clip; it is not called if the cache has all frames. A `None` among them is a missing frame,
    which shows nobody. `start`, `end` and `every` are those of [`choose_frames`].

    Raises:
        UnreadablePictures: If a frame cannot be read, or the frames differ in size.
        ValueError: If the clip is too short for `start` or `end`, or something else has a name of the cache's.
    """
    _check_names(folder)
    length = _known_length(folder)
    if length is not None:
        choose_frames(length, start, end, every)
    stop = length if end is None else end
    if stop is not None and all(read_frame(folder, index) for index in range(start, stop, every)):
        return range(start, stop, every)
    count, size = 0, None
    for index, picture in enumerate(pictures()):
        if index == end:
            break
        count, size = index + 1, size or picture.size
        if picture is not None and picture.size != size:
            raise UnreadablePictures(f"`input` must have pictures of one size, got {size} and {picture.size}.")
        if index < start or (index - start) % every or read_frame(folder, index):
            continue
        found = [] if picture is None else estimator(picture)
        shown = Image.new("RGB", (1, 1), "white") if picture is None else picture.copy()
        shown.thumbnail(_SHOWN)
        _write_frame(folder, index, SeenFrame(found, size, shown))
    else:
        write_json(folder / _FACTS, {"num_frames": count})
    if count == 0:
        raise UnreadablePictures("`input` must have at least one frame, got none.")
    return choose_frames(count, start, end, every)


def _known_length(folder: Path) -> int | None:
    """Return the number of the clip's frames, if a run has read it to its end."""
    try:
        length = int(json.loads((folder / _FACTS).read_text())["num_frames"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return length if length > 0 else None
