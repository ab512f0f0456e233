# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Sample positions, learning rate and seed of each optimizer step, as functions of the step number.

Nothing here holds state, so a resumed run equals an undisturbed one. The number of processes only changes which
process computes which samples.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers.optimization import get_scheduler


def position_batches(
    first_position: int,
    num_steps: int,
    train_batch_size: int,
    gradient_accumulation_steps: int = 1,
    num_processes: int = 1,
    process_index: int = 0,
) -> Iterator[list[int]]:
    """Yield the sample positions of one process, one micro-batch at a time, with no end of an epoch.

    Each optimizer step takes the next `global_batch_size` consecutive positions over all processes and micro-batches,
    so the samples of a step do not depend on how they are shared out. `first_position` is that of the first sample of
    the first step, over all processes; `train_batch_size` counts the samples per micro-batch and process.
    """
    for index in range(num_steps * gradient_accumulation_steps):
        start = first_position + (index * num_processes + process_index) * train_batch_size
        yield list(range(start, start + train_batch_size))


def get_lr_curve(
    lr_scheduler: str,
    learning_rate: float,
    lr_warmup_steps: int,
    max_train_steps: int,
    lr_num_cycles: int = 1,
    lr_power: float = 1.0,
) -> Callable[[int], float]:
    """Return the learning rate as a function of the optimizer step, from `diffusers.optimization.get_scheduler`.

    A resumed run follows the curve of its own `max_train_steps`, whatever the number of processes.
    """
    # The schedules are closures that read only an optimizer's default learning rate, so a stand-in is enough.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    counts = {"num_warmup_steps": lr_warmup_steps, "num_training_steps": max_train_steps, "num_cycles": lr_num_cycles}
    scheduler = get_scheduler(lr_scheduler, optimizer, power=lr_power, **counts)
    return lambda global_step: learning_rate * scheduler.lr_lambdas[0](global_step)


def seed_step(seed: int, global_step: int, process_index: int = 0) -> None:
    """Seed torch for one step of one process, for modules that draw random numbers themselves (dropout)."""
    # numpy mixes the three numbers into one; torch accepts 63 bits on every device.
    words = np.random.SeedSequence([seed, global_step, process_index]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)
