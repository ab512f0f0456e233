# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What an optimizer step is by its number alone: its sample positions, its learning rate, its seed.

Nothing here holds state, so a resumed run equals an undisturbed one, and the number of processes changes nothing but
who computes which samples.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch.utils.data import Sampler


class PositionBatchSampler(Sampler[list[int]]):
    """The sample positions of one process, micro-batch by micro-batch, without end of epoch.

    The positions of one optimizer step, over all processes and micro-batches, are the next `global_batch_size` ones in
    one piece, so they do not depend on how that batch is shared out.

    Args:
        first_position (`int`): Position of the first sample of the first step, over all processes.
        num_steps (`int`): Optimizer steps to go.
        train_batch_size (`int`): Samples of one micro-batch of one process.
        gradient_accumulation_steps (`int`): Micro-batches of one step.
        num_processes (`int`): Processes that share each step.
        process_index (`int`): Which of them this is.
    """

    def __init__(
        self,
        first_position: int,
        num_steps: int,
        train_batch_size: int,
        gradient_accumulation_steps: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.first_position = first_position
        self.num_micro_batches = num_steps * gradient_accumulation_steps
        self.train_batch_size = train_batch_size
        self.num_processes = num_processes
        self.process_index = process_index

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.num_micro_batches):
            share = index * self.num_processes + self.process_index
            start = self.first_position + share * self.train_batch_size
            yield list(range(start, start + self.train_batch_size))


def get_lr_curve(
    lr_scheduler: str,
    learning_rate: float,
    lr_warmup_steps: int,
    max_train_steps: int,
    lr_num_cycles: int = 1,
    lr_power: float = 1.0,
) -> Callable[[int], float]:
    """The learning rate as a plain function of the optimizer step, by `diffusers.optimization.get_scheduler`.

    It holds no state: a resumed run follows the curve of its own `max_train_steps`, whatever the number of processes.
    """
    # The schedules are closures over an optimizer's defaults; a stand-in is enough to get at them.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    scheduler = get_scheduler(
        lr_scheduler,
        optimizer,
        num_warmup_steps=lr_warmup_steps,
        num_training_steps=max_train_steps,
        num_cycles=lr_num_cycles,
        power=lr_power,
    )
    return lambda global_step: learning_rate * scheduler.lr_lambdas[0](global_step)


def seed_step(seed: int, global_step: int, process_index: int = 0) -> None:
    """Seed torch for one step of one process, for modules that draw by themselves (dropout)."""
    # numpy mixes the three numbers into one; 63 bits are what torch takes on every device.
    words = np.random.SeedSequence([seed, global_step, process_index]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)
