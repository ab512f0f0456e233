# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Batches for a training run from where it is: of mapped samples by their positions, or of a stream.

A stream is an endless `IterableDataset`. Its samples hold `stream_position`, whole numbers to go on from, and it has
`load_positions`, which takes one position for each of its data workers, or one for no workers.
"""

import logging
from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from training.engine.interruption import ignore_stop_signals
from training.engine.run_state import RunState
from training.engine.schedule import PositionBatchSampler


logger = logging.getLogger(__name__)

POSITION = "stream_position"


def load_batches(
    dataset: Dataset,
    state: RunState,
    num_steps: int,
    train_batch_size: int,
    gradient_accumulation_steps: int,
    num_workers: int,
    saved_positions: list[list[list[int]]] | None = None,
) -> Generator[Any, None, None]:
    """This process's share of what a run still has to see; closing the generator ends the worker processes at once.

    Args:
        dataset (`Dataset`): Mapped, or an endless stream.
        state (`RunState`): How far the run is; of a stream, the positions of what was handed out are noted in it.
        num_steps (`int`): Optimizer steps to go.
        train_batch_size (`int`): Samples of one micro-batch of one process.
        gradient_accumulation_steps (`int`): Micro-batches of one step.
        num_workers (`int`): Worker processes, 0 for none.
        saved_positions (`list`, *optional*): Those that a checkpoint has, of each process and worker.
    """
    options = {
        "num_workers": num_workers,
        "pin_memory": state.accelerator.device.type == "cuda",
        "worker_init_fn": ignore_stop_signals,
        # A generator of its own, or starting it would draw from the one that the step is seeded with.
        "generator": torch.Generator(),
    }
    # Neither is prepared by accelerate, which would share the samples out once more.
    if isinstance(dataset, IterableDataset):
        state.stream_positions = _own_positions(state, max(1, num_workers), saved_positions)
        dataset.load_positions(state.stream_positions)
        batches = DataLoader(dataset, train_batch_size, **options)
        for number, batch in enumerate(batches):  # from one worker after another
            worker = number % len(state.stream_positions)
            state.stream_positions[worker] = batch.pop(POSITION)[-1].tolist()
            yield batch
        return
    sampler = PositionBatchSampler(
        state.num_samples,
        num_steps,
        train_batch_size,
        gradient_accumulation_steps,
        state.accelerator.num_processes,
        state.accelerator.process_index,
    )
    yield from DataLoader(dataset, batch_sampler=sampler, **options)


def _own_positions(state: RunState, num_workers: int, saved: list[list[list[int]]] | None) -> list[list[int]]:
    """Where each data worker of this process goes on: where it was, or, if now others share the stream, at the start
    of the earliest epoch that some worker was in."""
    processes = state.accelerator.num_processes
    if saved is None:
        return [[0, 0, 0] for _ in range(num_workers)]
    if len(saved) == processes and all(len(positions) == num_workers for positions in saved):
        return [list(position) for position in saved[state.accelerator.process_index]]
    epoch = min(position[0] for positions in saved for position in positions)
    logger.warning(
        f"The stream was shared by {len(saved)} processes of {len(saved[0])} data workers and is now by {processes} of"
        f" {num_workers}: going on at the start of epoch {epoch}."
    )
    return [[epoch, 0, 0] for _ in range(num_workers)]
