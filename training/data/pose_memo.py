# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Pose maps at latent size that are kept once they are read: a frame's is in the windows of five targets, each seen in
every epoch, and decoding it costs far more than reading it back.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch


logger = logging.getLogger(__name__)


class PoseMemo:
    """Pose maps by row, in a nameless file that the processes of a loader map and share.

    It takes 10 KB a row at 512x640, on the disk: the memory that it maps is the system's, to be taken back. Processes
    need no lock, since all write the same, and what is written counts once it is marked. The file goes with them.

    Args:
        num_rows (`int`): Of the data set.
        height, width (`int`): `h` and `w` of the maps, in latent cells.
    Raises:
        OSError: If there is no room for it in the cache folder of `datasets`.
    """

    def __init__(self, num_rows: int, height: int, width: int):
        self.num_rows, self.height, self.width = num_rows, height, width
        # Not where temporary files go, which may be memory.
        folder = Path(datasets.config.HF_DATASETS_CACHE)
        folder.mkdir(parents=True, exist_ok=True)
        entry = np.dtype([("size", "<i4", 2), ("map", "u1", (2, height, width)), ("is_known", "?")])
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), num_rows * entry.itemsize)
            self._entries = np.memmap(file, entry, "r+", shape=(num_rows,))

    @classmethod
    def open(cls, num_rows: int, height: int, width: int) -> "PoseMemo | None":
        """A memo, or `None`, with a warning, where there is no room for one: maps are then decoded whenever they are
        met. Arguments are those of the class."""
        try:
            return cls(num_rows, height, width)
        except OSError as error:
            folder = datasets.config.HF_DATASETS_CACHE
            logger.warning(f"Pose maps are not kept, so that loading is slower: {folder} has no room ({error}).")
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Empty, for a process that shares no memory with this one: it reads anew."""
        return PoseMemo.open, (self.num_rows, self.height, self.width)

    def get(self, row: int) -> tuple[torch.Tensor, tuple[int, int]] | None:
        """What was kept of a row: its map, shape `(2, h, w)`, range `[0, 1]`, and its picture's width and height."""
        entry = self._entries[row]
        if not entry["is_known"]:
            return None
        return torch.from_numpy(entry["map"].astype(np.float32)) / 255, tuple(entry["size"].tolist())

    def put(self, row: int, pose_map: torch.Tensor, size: tuple[int, int]) -> None:
        """Keep a row's map, whose values are levels of 8 bit, as IUV has them, and its picture's width and height."""
        entry = self._entries[row]
        entry["map"] = pose_map.mul(255).round().byte().numpy()
        entry["size"] = size
        entry["is_known"] = True


def _reserve(file: int, num_bytes: int) -> None:
    """Make a new file so long, of zeros. Where the system can, its place on the disk is taken now: a full disk would
    end the process that writes to the mapped file later, without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, num_bytes)
    else:
        os.truncate(file, num_bytes)
