# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Batches for the rest of a training run, from a mapped dataset or from a stream.

A stream is an endless `IterableDataset`. Each of its samples holds `stream_position`, whole numbers that tell where to
resume. Its method `load_positions` takes one position per data worker, or a single one without workers.
"""

import logging
from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from training.engine.interruption import ignore_stop_signals
from training.engine.run_state import RunState
from training.engine.schedule import position_batches


logger = logging.getLogger(__name__)


def load_batches(
    dataset: Dataset,
    state: RunState,
    num_steps: int,
    train_batch_size: int,
    gradient_accumulation_steps: int,
    num_workers: int,
    saved_positions: list[list[list[int]]] | None = None,
) -> Generator[Any, None, None]:
    """Yield this process's batches for `num_steps` optimizer steps. Closing the generator ends the workers at once.

    `state` tells where the run is; for a stream, it also records the positions of the batches yielded. A checkpoint's
    `saved_positions` hold those of each process and worker.
    """
    accelerator = state.accelerator
    options = {
        "num_workers": num_workers,
        "pin_memory": accelerator.device.type == "cuda",
        "worker_init_fn": ignore_stop_signals,
        # Without its own generator, the loader would draw from the global one, which each step seeds.
        "generator": torch.Generator(),
    }
    # accelerate prepares neither loader, since it would split the samples among the processes a second time.
    if isinstance(dataset, IterableDataset):
        state.stream_positions = _own_positions(state, max(1, num_workers), saved_positions)
        dataset.load_positions(state.stream_positions)
        batches = DataLoader(dataset, train_batch_size, **options)
        for number, batch in enumerate(batches):  # the workers take turns
            worker = number % len(state.stream_positions)
            state.stream_positions[worker] = batch.pop("stream_position")[-1].tolist()
            yield batch
        return
    share = (accelerator.num_processes, accelerator.process_index)
    positions = position_batches(state.num_samples, num_steps, train_batch_size, gradient_accumulation_steps, *share)
    yield from DataLoader(dataset, batch_sampler=positions, **options)


def _own_positions(state: RunState, num_workers: int, saved: list[list[list[int]]] | None) -> list[list[int]]:
    """Return the start position of each data worker of this process: its saved one, or the start of the earliest epoch
    in progress if the number of processes or workers has changed."""
    processes = state.accelerator.num_processes
    if saved is None:
        return [[0, 0, 0] for _ in range(num_workers)]
    if len(saved) == processes and all(len(positions) == num_workers for positions in saved):
        return [list(position) for position in saved[state.accelerator.process_index]]
    epoch = min(position[0] for positions in saved for position in positions)
    logger.warning(
        f"The stream was shared by {len(saved)} processes of {len(saved[0])} data workers and is now shared by"
        f" {processes} of {num_workers}: resuming at the start of epoch {epoch}."
    )
    return [[epoch, 0, 0] for _ in range(num_workers)]
