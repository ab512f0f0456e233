# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options that all trainers share: the run and the Hub."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.options.fields import (
    LARGEST,
    LARGEST_SEED,
    check,
    check_choice,
    check_counts,
    check_folder,
    check_limit,
    check_not_negative,
    check_positive,
    option,
)


@dataclass(frozen=True)
class TrainOptions:
    """Run: steps, optimizer, learning rate, checkpoints and logs."""

    output_dir: str = option("output", "Folder for checkpoints, logs, options and the finished weights.")
    num_train_epochs: int = option(5, "Number of passes over the data set if `max_train_steps` is `none`.")
    max_train_steps: int | None = option(
        None, "Number of optimizer steps. It overrides `num_train_epochs`. With 0, stage 1 only widens the pipeline."
    )
    train_batch_size: int = option(4, "Samples per batch on each process.")
    gradient_accumulation_steps: int = option(1, "Batches per optimizer step.")
    learning_rate: float = option(5e-6, "Peak learning rate.")
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = option("constant", "Schedule of the learning rate.")
    lr_warmup_steps: int = option(0, "Optimizer steps before the learning rate reaches its peak.")
    lr_num_cycles: int = option(1, "Number of times that `cosine_with_restarts` falls from the peak.")
    lr_power: float = option(1.0, "Exponent of `polynomial`.")
    adam_beta1: float = option(0.9, "Decay of AdamW's first moment; momentum of Muon.")
    adam_beta2: float = option(0.999, "Decay of AdamW's second moment.")
    adam_weight_decay: float = option(1e-2, "Weight decay of AdamW and Muon.")
    adam_epsilon: float = option(1e-8, "Epsilon of AdamW.")
    optimizer: Literal["adamw", "muon"] = option(
        "adamw",
        "Optimizer. `muon` takes orthogonal steps for weights with at least 32 rows and columns; set `adam_beta1` to"
        " 0.95 with it.",
    )
    use_8bit_adam: bool = option(False, "Store AdamW's moments in 8 bit. This needs CUDA and bitsandbytes.")
    max_grad_norm: float | None = option(1.0, "Clip gradients to this norm over all trained weights.")
    ema_decay: float | None = option(None, "Decay of the moving average of the weights; `none` keeps no average.")
    seed: int = option(0, "Seed of all random draws, including the data.")
    dataloader_num_workers: int = option(0, "Number of processes that load data; 0 loads in the training process.")
    checkpointing_steps: int | None = option(500, "Write a checkpoint every this many steps and after the last step.")
    checkpoints_total_limit: int | None = option(2, "Number of newest checkpoints to keep; `none` keeps all.")
    resume_from_checkpoint: str | None = option(
        None, "Resume from this checkpoint folder, or from the newest with `latest`, which starts anew without one."
    )
    logging_steps: int = option(10, "Log the means over this many steps.")
    validation_steps: int | None = option(
        None, "Validate every this many steps and after the last step; `none` never validates."
    )
    max_nonfinite_steps: int = option(
        5, "Stop after this many consecutive steps with a loss or gradient that is not finite."
    )
    report_to: str | None = option(
        None, "Tracker in addition to `log.jsonl`: `tensorboard`, `wandb`, or `all` installed ones."
    )
    mixed_precision: str | None = option(None, "`no`, `fp16` or `bf16`; `none` uses accelerate's configuration.")
    allow_tf32: bool = option(False, "Use TensorFloat-32 for float32 matrices on CUDA: faster, less exact.")
    channels_last: bool = option(False, "Use the channels_last layout for convolutions: faster on most devices.")

    def __post_init__(self):
        from training.engine.optimizer import check_optimizer

        check_counts(
            self,
            *("num_train_epochs", "train_batch_size", "gradient_accumulation_steps"),
            *("checkpointing_steps", "checkpoints_total_limit", "logging_steps", "validation_steps"),
            *("max_nonfinite_steps", "lr_num_cycles"),
        )
        check_positive(self, "learning_rate", "adam_epsilon", "lr_power")
        check(self, "above 0", lambda value: value > 0, "max_grad_norm")
        check(self, "within [0, 1)", lambda value: 0 <= value < 1, "adam_beta1", "adam_beta2", "ema_decay")
        check_not_negative(
            self, "max_train_steps", "adam_weight_decay", "lr_warmup_steps", "dataloader_num_workers", "seed"
        )
        check_limit(self, LARGEST, "max_train_steps", "lr_warmup_steps")
        check_limit(self, LARGEST_SEED, "seed")
        check_limit(self, 1024, "dataloader_num_workers")
        check_folder(self, "output_dir")
        if self.lr_scheduler == "constant" and self.lr_warmup_steps > 0:
            raise ValueError(
                "`lr_warmup_steps` must be 0 with `lr_scheduler` constant (constant_with_warmup warms up), got"
                f" {self.lr_warmup_steps}."
            )
        check_optimizer(self.optimizer, self.use_8bit_adam)
        check_choice(self, "mixed_precision", ("no", "fp16", "bf16"))
        check_choice(self, "report_to", ("tensorboard", "wandb", "all"))

    def loop_arguments(self, num_samples: int | None, num_processes: int = 1) -> dict[str, Any]:
        """Return the keyword arguments for [`training.engine.loop.train`].

        Args:
            num_samples (`int`, *optional*): Number of samples per epoch, which sets `max_train_steps` where it is
                `none`; `None` for a stream, whose length is unknown.
            num_processes (`int`): Number of processes that share each step.
        Raises:
            ValueError: If neither steps nor samples are known.
        """
        others = ("num_train_epochs", "channels_last", "mixed_precision", "report_to", "allow_tf32")
        arguments = {name: value for name, value in vars(self).items() if name not in others}
        if self.max_train_steps is None:
            if num_samples is None:
                raise ValueError("`max_train_steps` must be given with `streaming`, got none.")
            num_steps = self.num_train_epochs * num_samples / self.global_batch_size(num_processes)
            arguments["max_train_steps"] = math.ceil(num_steps)
        return arguments

    def global_batch_size(self, num_processes: int = 1) -> int:
        """Return the number of samples per optimizer step over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * num_processes

    def session_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for [`training.engine.session.open_session`]."""
        names = ("output_dir", "seed", "mixed_precision", "report_to", "allow_tf32", "use_8bit_adam")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class HubOptions:
    """Hub: where the finished model is published."""

    push_to_hub: bool = option(False, "Push the finished model and its card to the Hub.")
    hub_model_id: str | None = option(None, "Repository on the Hub: `you/name`, or `name` for your own.")
    hub_private_repo: bool = option(True, "Make a new repository private.")
    hub_picture: str | None = option(
        None,
        "Picture for the card. Show only people who agreed. Without it, stage 1 on `procedural` data shows its last"
        " validation, and stage 2 shows the pictures that `hub_sample` allows.",
    )
    hub_license: str | None = option(
        None,
        "Licence for the card, by its name on the Hub. A model that starts from Stable Diffusion 1.x has one already.",
    )

    def __post_init__(self):
        from training.hub.model_card import PICTURE_SUFFIXES, is_repo_id

        if self.push_to_hub and not self.hub_model_id:
            raise ValueError(f"`hub_model_id` must name a repository with `push_to_hub`, got {self.hub_model_id!r}.")
        check(self, "a repository's id on the Hub", is_repo_id, "hub_model_id")
        names = ", ".join(PICTURE_SUFFIXES)
        is_picture = lambda value: Path(value).is_file() and Path(value).suffix.lower() in PICTURE_SUFFIXES  # noqa: E731
        check(self, f"a file of {names}", is_picture, "hub_picture")
