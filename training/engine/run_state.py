# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A training run between two steps: weights, optimizer, average and counts, to a checkpoint and back."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import nn

from training.engine.checkpoints import (
    collect_module_tensors,
    load_checkpoint,
    restore_tensors,
    rotate_checkpoints,
    save_checkpoint,
)
from training.engine.optimizer import flatten_optimizer_state, restore_optimizer_state
from training.engine.run_log import LogWindow


logger = logging.getLogger(__name__)

COUNTS = ("global_step", "num_samples", "num_skipped_steps")


class RunState:
    """What a run goes on from.

    Args:
        accelerator (`Accelerator`): Of the run; its scaler belongs to the state.
        module (`nn.Module`): Prepared and unwrapped.
        optimizer (`torch.optim.Optimizer`): Of its trained parameters, not prepared.
        ema_decay (`float`, *optional*): Of the average of the weights, which there is none of without it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema_decay: float | None = None,
    ):
        self.accelerator, self.module, self.optimizer = accelerator, module, optimizer
        self.trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.ema = None
        if ema_decay is not None:
            self.ema = EMAModel(self.trained.values(), decay=ema_decay, foreach=True)
            self.ema.to(dtype=torch.float32)
        self.global_step = 0  # optimizer steps done
        self.num_samples = 0  # of all processes
        self.num_skipped_steps = 0
        self.window = LogWindow()  # since the last record of the log
        self.stream_positions: list[list[int]] | None = None  # of a stream, of each of this process's data workers

    def load(self, path: Path) -> dict[str, Any]:
        """Go back to a checkpoint; returns its `state.json`.

        Raises:
            ValueError: If it is not whole or does not fit.
        """
        tensors, state = load_checkpoint(path)
        used = type(self.optimizer).__name__
        if state.get("optimizer", used) != used:
            raise ValueError(
                f"The checkpoint's optimizer must fit the run's, {used}, got {state['optimizer']}: go on with that"
                " one, or in another `output_dir`."
            )
        restore_tensors(collect_module_tensors(self.module), tensors["model"], "model weights")
        restore_optimizer_state(self.optimizer, self.trained, tensors["optimizer"])
        if self.ema is not None and "ema" in tensors:
            restore_tensors(dict(zip(self.trained, self.ema.shadow_params)), tensors["ema"], "averaged weights")
            self.ema.optimization_step = state["ema_optimization_step"]
        elif self.ema is not None:
            logger.warning(f"{path} has no averaged weights: the average starts from its weights.")
            self.ema.shadow_params = [value.detach().clone().float() for value in self.trained.values()]
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name in COUNTS:
            setattr(self, name, state[name])
        windows = state.get("log_windows", [])
        if len(windows) == self.accelerator.num_processes:
            self.window = LogWindow(**windows[self.accelerator.process_index])
        return state

    def save(self, output_dir: Path, checkpoints_total_limit: int | None, world: Mapping[str, Any]) -> None:
        """Write a checkpoint and remove surplus ones; to be called by all processes.

        Args:
            output_dir (`Path`): Folder of the run's checkpoints.
            checkpoints_total_limit (`int`, *optional*): How many to keep.
            world (`Mapping`): What `state.json` says of the processes and batches.
        Raises:
            RuntimeError: If it cannot be written.
        """
        tensors = {
            "model": collect_module_tensors(self.module),
            "optimizer": flatten_optimizer_state(self.optimizer, self.trained),
        }
        if self.ema is not None:
            tensors["ema"] = dict(zip(self.trained, self.ema.shadow_params))
        scaler, positions = self.accelerator.scaler, self.stream_positions
        state = {
            **{name: getattr(self, name) for name in COUNTS if name != "global_step"},
            "optimizer": type(self.optimizer).__name__,
            "ema_optimization_step": None if self.ema is None else self.ema.optimization_step,
            "scaler": None if scaler is None else scaler.state_dict(),
            "log_windows": gather_object([self.window.as_json()]),
            "stream_positions": None if positions is None else gather_object([positions]),
            "world": dict(world),
        }
        if self.accelerator.is_main_process:
            save_checkpoint(output_dir, self.global_step, tensors, state)
            rotate_checkpoints(output_dir, checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def take_average(self) -> None:
        """Put the averaged weights, if there are any, in the place of the last ones."""
        if self.ema is not None:
            self.ema.copy_to(self.trained.values())
