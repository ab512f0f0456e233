# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Cache of decoded pose maps at latent size.

A frame's map is in the windows of five targets in every epoch, and decoding it costs far more than reading it back.
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
    """Pose maps of `height` x `width` cells by row, in an unnamed file that a loader's processes map into memory.

    It takes 10 KB of disk per row at 512x640; the system can reclaim the mapped memory. Processes need no lock: all
    write the same values, and mark an entry as known last. The file disappears when the processes end.

    Raises:
        OSError: If the cache folder of `datasets` has no room for the file.
    """

    def __init__(self, num_rows: int, height: int, width: int):
        self.num_rows, self.height, self.width = num_rows, height, width
        # The folder for temporary files may be in memory.
        folder = Path(datasets.config.HF_DATASETS_CACHE)
        folder.mkdir(parents=True, exist_ok=True)
        entry = np.dtype([("size", "<i4", 2), ("map", "u1", (2, height, width)), ("is_known", "?")])
        with tempfile.TemporaryFile(dir=folder) as file:
            # Reserve the disk space now: a full disk would later kill any process that writes to the mapped file.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_rows * entry.itemsize)
            else:
                os.truncate(file.fileno(), num_rows * entry.itemsize)
            self._entries = np.memmap(file, entry, "r+", shape=(num_rows,))

    @classmethod
    def open(cls, num_rows: int, height: int, width: int) -> "PoseMemo | None":
        """Return a memo, or warn and return `None` if there is no room for one."""
        try:
            return cls(num_rows, height, width)
        except OSError as error:
            folder = datasets.config.HF_DATASETS_CACHE
            logger.warning(f"Pose maps are not kept, so loading is slower: {folder} has no room ({error}).")
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an empty memo: a process that does not share this memory decodes the maps itself."""
        return PoseMemo.open, (self.num_rows, self.height, self.width)

    def get(self, row: int) -> tuple[torch.Tensor, tuple[int, int]] | None:
        """Return a row's map, shape `(2, h, w)`, range `[0, 1]`, and its picture's width and height, if known."""
        entry = self._entries[row]
        if not entry["is_known"]:
            return None
        return torch.from_numpy(entry["map"].astype(np.float32)) / 255, tuple(entry["size"].tolist())

    def put(self, row: int, pose_map: torch.Tensor, size: tuple[int, int]) -> None:
        """Keep a row's map (8-bit levels divided by 255) and its picture's width and height."""
        entry = self._entries[row]
        entry["map"] = pose_map.mul(255).round().byte().numpy()
        entry["size"] = size
        entry["is_known"] = True
