# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Training samples from a stream of prepared rows that is never stored on disk, read one video at a time.

Epoch, video and frame determine a sample and its draws. The number of processes and workers only changes who reads a
sample, and when.
"""

import hashlib
import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import datasets
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from training.data.frame_pairs import FEATURES, BadRow, FramePairs, LatentShape, sample_generator
from training.data.pair_settings import PairSettings
from training.data.parquet_files import check_columns


def _worker_place() -> tuple[int, int]:
    """Return the index of this data worker and the number of workers: (0, 1) without worker processes."""
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)


class FrameStream(IterableDataset):
    """One epoch of the samples of [`FramePairs`]: every frame is a target once.

    Seed and epoch determine the order of the shards and of the frames within each video, so that most neighbours in a
    batch come from one video. Each process and worker reads whole shards of its own, so their numbers of samples
    differ; distributed training must allow for that. `state_dict` and `load_state_dict` resume at the start of the
    video that was being read. Each worker process has its own state, which starts as a copy of the parent's;
    `persistent_workers` do not notice a new epoch.

    Args:
        stream (`datasets.IterableDataset`): Rows with `video_id`, `frame_index`, `image` and `iuv`; those of a video
            follow one another in one shard.
        shape, seed, settings: See [`FramePairs`].
        process_index, num_processes (`int`, *optional*): Index of this training process and number of processes.
    Raises:
        ValueError: If `stream` lacks a column, or one has the wrong type.
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
        check_columns(stream.features or datasets.Features(), "`stream`")
        # Pictures of a video stay compressed, and each is decoded when it is needed.
        self.stream = stream.select_columns(list(FEATURES)).decode(False)
        self.shape, self.seed, self.settings = shape, seed, settings
        self.process_index, self.num_processes = process_index, num_processes
        # Which workers have finished, in shared memory, since a worker's own state ends with it.
        self._is_finished = torch.zeros(stream.num_shards, dtype=torch.bool).share_memory_()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch with its order and draws; call it before each epoch except the first."""
        self.load_state_dict({"epoch": epoch, "num_shards": 0, "num_videos": 0})

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of finished shards, and the number of finished videos of the next shard."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume where [`state_dict`] was called."""
        self._state = dict(state_dict)
        self._is_finished.zero_()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the samples; raise a `ValueError` if the epoch is already finished."""
        state, seen, num_bad_rows = self._state, set(), 0
        shards, (place, _) = self._own_shards(), _worker_place()
        if self._is_finished[place] or state["num_shards"] == len(shards):
            raise ValueError(f"`set_epoch` must be called before the next epoch; epoch {state['epoch']} is finished.")
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
        self._is_finished[place] = True

    def _own_shards(self) -> list[int]:
        """Return the numbers of the shards that this worker of this process reads, in the epoch's order."""
        index, num_workers = _worker_place()
        shares, share = self.num_processes * num_workers, self.process_index * num_workers + index
        if shares > self.stream.num_shards:
            raise ValueError(
                "`stream` must have a shard for each worker of each process, got"
                f" {self.stream.num_shards} shards for {shares}."
            )
        generator = sample_generator(self.seed, -1 - self._state["epoch"])
        return torch.randperm(self.stream.num_shards, generator=generator)[share::shares].tolist()

    def _videos(self, shard: int) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of each video of a shard; raise a `ValueError` if a file of it cannot be read."""
        num_shards = self.stream.num_shards
        # Batches of one, since `datasets` would divide single rows among the worker processes once more.
        batches = self.stream.shard(num_shards, shard).iter(batch_size=1)
        rows = ({name: values[0] for name, values in batch.items()} for batch in batches)
        try:
            for _, video in itertools.groupby(rows, key=itemgetter("video_id")):
                yield list(video)
        except (OSError, pa.ArrowException) as error:
            place = f"shard {shard + 1} of {num_shards}"
            raise ValueError(f"`stream` must have files that can be read, but its {place} cannot: {error}") from error

    def _samples(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, torch.Tensor] | None]:
        """Yield the samples of a video, and `None` for each bad row that is skipped."""
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
        """Return the generator of a video or frame, given by name, in this epoch."""
        digest = hashlib.sha256(repr((self._state["epoch"], *name)).encode()).digest()
        return sample_generator(self.seed, int.from_bytes(digest[:7]))


class EndlessFrameStream(IterableDataset):
    """All epochs of a [`FrameStream`] without end, for `training.engine.batches`.

    A sample's `stream_position` [3] holds its epoch and the numbers of finished shards, and of finished videos of the
    next shard, before its video. Resuming there starts that video again.
    """

    def __init__(self, stream: FrameStream):
        self.stream = stream
        self.load_positions([])

    def load_positions(self, positions: list[list[int]]) -> None:
        """Resume at one position per data worker (one if there are no workers), or at the start if it is empty."""
        self._positions = [list(position) for position in positions]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the samples; raise a `ValueError` if an epoch has no sample for this worker."""
        place, _ = _worker_place()
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
                raise ValueError(f"`stream` must have a sample for every worker, got none in epoch {epoch}.")
            epoch, is_whole = epoch + 1, True
            self.stream.set_epoch(epoch)


def take_videos(stream: datasets.IterableDataset, num_videos: int) -> datasets.Dataset:
    """Read the rows of the first videos of a stream into memory."""
    videos = {}
    for row in stream.select_columns(list(FEATURES)).decode(False):
        if row["video_id"] not in videos and len(videos) == num_videos:
            break
        videos.setdefault(row["video_id"], []).append(row)
    return datasets.Dataset.from_list([row for rows in videos.values() for row in rows], features=FEATURES)
