# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Pose maps at latent size that are kept once they are read: a frame's is in the windows of five targets, each seen in
every epoch, and decoding it costs far more than reading it back.
"""

import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch


class PoseMemo:
    """Pose maps by row, in a nameless file that the processes of a loader map and share.

    It takes 10 KB a row at 512x640, on the disk: the memory that it maps is the system's, to be taken back. Processes
    need no lock, since all write the same, and what is written counts once it is marked. The file goes with them.

    Args:
        num_rows (`int`): Of the data set.
        height, width (`int`): `h` and `w` of the maps, in latent cells.
    """

    def __init__(self, num_rows: int, height: int, width: int):
        self.num_rows, self.height, self.width = num_rows, height, width
        # Not where temporary files go, which may be memory.
        folder = Path(datasets.config.HF_DATASETS_CACHE)
        folder.mkdir(parents=True, exist_ok=True)
        entry = np.dtype([("size", "<i4", 2), ("map", "u1", (2, height, width)), ("is_known", "?")])
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(num_rows * entry.itemsize)  # of zeros, without a place on the disk until they are written
            self._entries = np.memmap(file, entry, "r+", shape=(num_rows,))

    def __reduce__(self) -> tuple[Any, ...]:
        """Empty, for a process that shares no memory with this one: it reads anew."""
        return PoseMemo, (self.num_rows, self.height, self.width)

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
