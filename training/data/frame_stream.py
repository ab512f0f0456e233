# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Samples from a stream of prepared rows, for data sets that are not to lie on the disk: one video at a time.

A sample is told by its epoch, video and frame, and so are its draws: how many processes and workers share a stream
changes who reads a sample and when, not the sample.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from torch.utils.data import IterableDataset, get_worker_info

from training.data.frame_pairs import BadRow, FramePairs, LatentShape, sample_generator
from training.data.pair_settings import PairSettings


FEATURES = datasets.Features(
    {
        "video_id": datasets.Value("string"),
        "frame_index": datasets.Value("int32"),
        "image": datasets.Image(),
        "iuv": datasets.Image(),
    }
)


class FrameStream(IterableDataset):
    """One epoch of the samples of [`FramePairs`], every frame once a target, in an order drawn by seed and epoch:
    the shards are shuffled, and the frames within a video, of which the neighbours in a batch mostly are.

    Processes and worker processes share the shards out, whole ones, so that shares are uneven: processes that step
    together, as in distributed training, must not count on equal numbers of samples. `state_dict` and
    `load_state_dict` go on at the start of the video that was being read; each worker process has a state of its own,
    which begins with that of the process that starts it. `persistent_workers` do not hear of a new epoch.

    Args:
        stream (`datasets.IterableDataset`): Rows with `video_id`, `frame_index`, `image` and `iuv`, those of a video
            one after another and in one shard.
        shape (`LatentShape`): Sizes of pictures and latents.
        seed (`int`): Of all draws.
        settings (`PairSettings`, *optional*): How frames become a sample.
        process_index, num_processes (`int`, *optional*): Which of several training processes this is.
    Raises:
        ValueError: If `stream` lacks a column.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        shape: LatentShape,
        seed: int,
        settings: PairSettings = PairSettings(),
        process_index: int = 0,
        num_processes: int = 1,
    ):
        missing = [name for name in FEATURES if name not in (stream.column_names or ())]
        if missing:
            raise ValueError(f"`stream` must have the columns {', '.join(FEATURES)}, but lacks {missing}.")
        # Held as they are in the file, pictures of a video are small; each is decoded when it is asked for.
        self.stream = stream.select_columns(list(FEATURES)).decode(False)
        self.shape, self.seed, self.settings = shape, seed, settings
        self.process_index, self.num_processes = process_index, num_processes
        # Which workers' shares are through: in memory that they share, since their states end with them.
        self._is_through = torch.zeros(stream.num_shards, dtype=torch.bool).share_memory_()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the draws, and begin anew; to be called before each epoch but the first."""
        self.load_state_dict({"epoch": epoch, "num_shards": 0, "num_videos": 0})

    def state_dict(self) -> dict[str, int]:
        """The epoch, the shards of this share that are through, and the videos of the next one."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where [`state_dict`] was asked for."""
        self._state = dict(state_dict)
        self._is_through.zero_()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Raises a `ValueError` if the epoch is through already."""
        state, seen, num_bad_rows = self._state, set(), 0
        worker, shards = get_worker_info(), self._own_shards()
        place = 0 if worker is None else worker.id
        if self._is_through[place] or state["num_shards"] == len(shards):
            raise ValueError(f"`set_epoch` must be called before the next epoch, epoch {state['epoch']} is through.")
        for shard in shards[state["num_shards"] :]:
            for number, rows in enumerate(self._videos(shard)):
                video_id = rows[0]["video_id"]
                if video_id in seen:
                    raise ValueError(
                        f"`stream` must have the rows of a video one after another, but {video_id!r} comes twice."
                    )
                seen.add(video_id)
                if number < state["num_videos"]:
                    continue
                for sample in self._samples(rows):
                    if sample is None:
                        num_bad_rows += 1
                    elif self.settings.bad_rows == "raise":
                        yield sample
                    else:
                        yield sample | {"num_bad_rows": torch.tensor(float(num_bad_rows))}
                        num_bad_rows = 0
                state["num_videos"] += 1
            state |= {"num_shards": state["num_shards"] + 1, "num_videos": 0}
        self._is_through[place] = True

    def _own_shards(self) -> list[int]:
        """Numbers of the shards that this worker of this process reads, in the order of the epoch."""
        worker = get_worker_info()
        workers, index = (1, 0) if worker is None else (worker.num_workers, worker.id)
        shares, share = self.num_processes * workers, self.process_index * workers + index
        if shares > self.stream.num_shards:
            raise ValueError(
                "`stream` must have a shard for each worker of each process, got"
                f" {self.stream.num_shards} shards for {shares}."
            )
        generator = sample_generator(self.seed, -1 - self._state["epoch"])
        return torch.randperm(self.stream.num_shards, generator=generator)[share::shares].tolist()

    def _videos(self, shard: int) -> Iterator[list[dict[str, Any]]]:
        """The rows of one video after another."""
        rows = []
        # Taken as batches of one, since rows taken singly are shared out once more among worker processes.
        for batch in self.stream.shard(self.stream.num_shards, shard).iter(batch_size=1):
            row = {name: values[0] for name, values in batch.items()}
            if rows and row["video_id"] != rows[0]["video_id"]:
                yield rows
                rows = []
            rows.append(row)
        if rows:
            yield rows

    def _samples(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, torch.Tensor] | None]:
        """The samples of a video, `None` for a bad row that is skipped."""
        video = datasets.Dataset.from_list(rows, features=FEATURES)
        pairs = FramePairs(video, self.shape, self.seed, self.settings)
        order = torch.randperm(len(rows), generator=self._generator(rows[0]["video_id"]))
        for row in order.tolist():
            try:
                yield pairs.read_sample(row, self._generator(rows[row]["video_id"], rows[row]["frame_index"]))
            except BadRow:
                if self.settings.bad_rows == "raise":
                    raise
                yield None

    def _generator(self, *name: str | int) -> torch.Generator:
        """The generator of what has this name in this epoch."""
        digest = hashlib.sha256(repr((self._state["epoch"], *name)).encode()).digest()
        return sample_generator(self.seed, int.from_bytes(digest[:7]))


class EndlessFrameStream(IterableDataset):
    """The epochs of a [`FrameStream`] one after another, as `training.engine.batches` takes a stream.

    A sample's `stream_position` [3] is its epoch, and how many shards of this share, and videos of the next one, lie
    before its video: who goes on there begins with that video anew.

    Args:
        stream (`FrameStream`): This process's share.
    """

    def __init__(self, stream: FrameStream):
        self.stream = stream
        self.load_positions([])

    def load_positions(self, positions: list[list[int]]) -> None:
        """Go on at these, one for each data worker, or one for no workers; at the start if there are none."""
        self._positions = [list(position) for position in positions]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Raises a `ValueError` if an epoch of this share has no sample."""
        worker = get_worker_info()
        place = 0 if worker is None else worker.id
        epoch, num_shards, num_videos = self._positions[place] if self._positions else (0, 0, 0)
        self.stream.load_state_dict({"epoch": epoch, "num_shards": num_shards, "num_videos": num_videos})
        is_whole = num_shards == num_videos == 0
        while True:
            count = 0
            for count, sample in enumerate(self.stream, start=1):
                state = self.stream.state_dict()
                position = [state[name] for name in ("epoch", "num_shards", "num_videos")]
                yield sample | {"stream_position": torch.tensor(position)}
            if count == 0 and is_whole:
                raise ValueError(f"`stream` must have a sample in every share of it, got none in epoch {epoch}.")
            epoch, is_whole = epoch + 1, True
            self.stream.set_epoch(epoch)


def take_videos(stream: datasets.IterableDataset, num_videos: int) -> datasets.Dataset:
    """The rows of the first videos of a stream, held in memory."""
    videos: dict[str, list[dict[str, Any]]] = {}
    for row in stream.select_columns(list(FEATURES)).decode(False):
        if row["video_id"] not in videos and len(videos) == num_videos:
            break
        videos.setdefault(row["video_id"], []).append(row)
    return datasets.Dataset.from_list([row for rows in videos.values() for row in rows], features=FEATURES)
