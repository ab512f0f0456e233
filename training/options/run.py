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
    """Run: steps, checkpoints, logs, learning rate and optimizer."""

    output_dir: str = option("output", "folder for checkpoints, logs, options and the finished weights")
    max_train_steps: int | None = option(
        None, "number of optimizer steps, in place of `num_train_epochs`; with 0, train.py only adds the pose channels"
    )
    num_train_epochs: int = option(5, "number of passes over the data set, if `max_train_steps` is none")
    train_batch_size: int = option(4, "samples per batch on each process")
    gradient_accumulation_steps: int = option(1, "batches per optimizer step")
    learning_rate: float = option(5e-6, "peak learning rate")
    mixed_precision: str | None = option(
        None, "no, fp16 (not on a CPU) or bf16; by default that of `accelerate config`"
    )
    resume_from_checkpoint: str | None = option(
        None, "checkpoint folder to resume from, or `latest` for the newest one in `output_dir`, if there is one"
    )
    checkpointing_steps: int | None = option(500, "number of steps between checkpoints; the last step has one too")
    checkpoints_total_limit: int | None = option(2, "number of newest checkpoints to keep; none keeps all")
    logging_steps: int = option(10, "number of steps between log lines, which show means over these steps")
    report_to: str | None = option(
        None, "tracker in addition to `log.jsonl`: tensorboard, wandb, or all that are installed"
    )
    seed: int = option(0, "seed of all random draws, also those of the data")
    dataloader_num_workers: int = option(0, "number of processes that load data; 0 loads in the training process")
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = option("constant", "schedule of the learning rate")
    lr_warmup_steps: int = option(0, "number of steps before the learning rate reaches its peak")
    lr_num_cycles: int = option(1, "number of times that `cosine_with_restarts` falls from the peak")
    lr_power: float = option(1.0, "exponent of `polynomial`")
    optimizer: Literal["adamw", "muon"] = option(
        "adamw",
        "optimizer; muon takes orthogonal steps for weights with at least 32 rows and columns, and works best with"
        " `adam_beta1` 0.95",
    )
    adam_beta1: float = option(0.9, "decay of AdamW's first moment, or momentum of Muon")
    adam_beta2: float = option(0.999, "decay of AdamW's second moment")
    adam_weight_decay: float = option(1e-2, "weight decay of AdamW and Muon")
    adam_epsilon: float = option(1e-8, "epsilon of AdamW")
    use_8bit_adam: bool = option(False, "store AdamW's moments in 8 bit; this needs CUDA and bitsandbytes")
    max_grad_norm: float | None = option(1.0, "largest norm of the gradient over all trained weights; none: no limit")
    ema_decay: float | None = option(None, "decay of the moving average of the weights; none keeps no average")
    max_nonfinite_steps: int = option(
        5, "stop after this many steps in a row whose loss or gradient is infinite or not a number"
    )
    allow_tf32: bool = option(False, "use TensorFloat-32 for float32 matrices on CUDA: faster, less exact")
    channels_last: bool = option(False, "use the channels_last layout for convolutions: faster on most devices")

    def __post_init__(self):
        from training.engine.optimizer import check_optimizer

        check_counts(
            self,
            *("num_train_epochs", "train_batch_size", "gradient_accumulation_steps"),
            *("checkpointing_steps", "checkpoints_total_limit", "logging_steps"),
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
                raise ValueError(
                    "`max_train_steps` is missing: with `streaming` the length of an epoch is unknown, so give the"
                    " number of steps."
                )
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
    """Publishing: the finished model on the Hub, and its card."""

    push_to_hub: bool = option(False, "push the finished model and its card to the Hub")
    hub_model_id: str | None = option(None, "repository on the Hub: `you/name`, or `name` for your own")
    hub_private_repo: bool = option(True, "make a new repository private")
    hub_picture: str | None = option(
        None,
        "picture for the card; show only people who agreed; without it the card shows the last validation (train.py"
        " on procedural data) or the pictures that `hub_sample` allows (finetune.py)",
    )
    hub_license: str | None = option(
        None,
        "licence for the card, by its name on the Hub; a model that starts from Stable Diffusion 1.x already has one",
    )

    def __post_init__(self):
        from training.hub.card_writer import PICTURE_SUFFIXES, is_repo_id

        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("`hub_model_id` is missing: with `push_to_hub`, give the repository's name on the Hub.")
        check(self, "a repository's id on the Hub", is_repo_id, "hub_model_id")
        names = ", ".join(PICTURE_SUFFIXES)
        is_picture = lambda value: Path(value).is_file() and Path(value).suffix.lower() in PICTURE_SUFFIXES  # noqa: E731
        check(self, f"a file of {names}", is_picture, "hub_picture")
