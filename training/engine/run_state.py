# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""State of a training run between two steps, saved to and loaded from a checkpoint."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from training.engine.state_file import require_keys


logger = logging.getLogger(__name__)

COUNTS = ("global_step", "num_samples", "num_skipped_steps")


class RunState:
    """Weights, optimizer, gradient scaler, averaged weights and counts, from which a run resumes.

    `module` is prepared and unwrapped; `optimizer` is not prepared. `ema_decay=None` keeps no averaged weights.
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
        self.num_samples = 0  # over all processes
        self.num_skipped_steps = 0
        self.window = LogWindow()  # since the last record of the log
        self.stream_positions: list[list[int]] | None = None  # for a stream: one per data worker of this process

    def load(self, path: Path) -> dict[str, Any]:
        """Load a checkpoint and return its `state.json`. Raise a `ValueError` if it is not whole or does not fit."""
        tensors, state = load_checkpoint(path)
        require_keys(path, state, *COUNTS, "world")
        require_keys(path, state["files"], "model.safetensors", "optimizer.safetensors")
        used = type(self.optimizer).__name__
        if state.get("optimizer", used) != used:
            raise ValueError(
                f"`optimizer` must be that of the checkpoint, {state['optimizer']}, got {used}: give that one, or"
                " choose another `--output_dir`."
            )
        restore_tensors(collect_module_tensors(self.module), tensors["model"], "model weights")
        restore_optimizer_state(self.optimizer, self.trained, tensors["optimizer"])
        if self.ema is not None and "ema" in tensors:
            restore_tensors(dict(zip(self.trained, self.ema.shadow_params)), tensors["ema"], "averaged weights")
            require_keys(path, state, "ema_optimization_step")
            self.ema.optimization_step = state["ema_optimization_step"]
        elif self.ema is not None:
            logger.warning(f"{path} has no averaged weights: the average starts from its last weights.")
            self.ema.shadow_params = [value.detach().clone().float() for value in self.trained.values()]
        if self.accelerator.scaler is not None and state.get("scaler"):
            require_keys(path, state["scaler"], *self.accelerator.scaler.state_dict())
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name in COUNTS:
            setattr(self, name, state[name])
        windows = state.get("log_windows", [])
        if len(windows) == self.accelerator.num_processes:
            self.window = LogWindow(**windows[self.accelerator.process_index])
        return state

    def save(self, output_dir: Path, checkpoints_total_limit: int | None, world: Mapping[str, Any]) -> None:
        """Write a checkpoint and delete surplus ones. All processes must call it.

        `world` describes the processes and batches, for `state.json`.

        Raises:
            RunStopped: If the checkpoint cannot be written.
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
        """Replace the last weights by the averaged ones, if there are any."""
        if self.ema is not None:
            self.ema.copy_to(self.trained.values())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Exchange the last weights for the averaged ones, if there are any, and exchange them back at the end.

        The parameters stay the same objects. No gradient may be computed through them meanwhile.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        if self.ema is not None:
            for last, average in zip(self.trained.values(), self.ema.shadow_params):
                last.data, average.data = average.data, last.data
            torch.clear_autocast_cache()  # an enclosing autocast keeps casts of the other weights
