# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The training loop of all trainers, over (module, loss_fn, dataset), on accelerate.

A step depends on its number alone, a sample on its position: a resumed run equals an undisturbed one.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.logging import get_logger
from accelerate.utils import send_to_device
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from training.checkpoints import (
    collect_module_tensors,
    flatten_optimizer_state,
    load_checkpoint,
    resolve_checkpoint,
    restore_optimizer_state,
    restore_tensors,
    rotate_checkpoints,
    save_checkpoint,
)
from training.interruption import StopSignals, TrainingInterrupted, ignore_stop_signals
from training.run_log import LogWindow, append_log, start_log
from training.schedule import PositionBatchSampler, get_lr_curve, seed_step


logger = get_logger(__name__)

LossFunction = Callable[[nn.Module, Mapping[str, Any]], tuple[torch.Tensor, Mapping[str, Any]]]


def train(
    accelerator: Accelerator,
    module: nn.Module,
    loss_fn: LossFunction,
    dataset: Dataset,
    *,
    output_dir: str | os.PathLike,
    max_train_steps: int,
    train_batch_size: int,
    learning_rate: float,
    gradient_accumulation_steps: int = 1,
    lr_scheduler: str = "cosine",
    lr_warmup_steps: int = 0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_weight_decay: float = 1e-2,
    adam_epsilon: float = 1e-8,
    max_grad_norm: float | None = 1.0,
    ema_decay: float | None = None,
    seed: int = 0,
    dataloader_num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    checkpointing_steps: int | None = 500,
    checkpoints_total_limit: int | None = 2,
    resume_from_checkpoint: str | os.PathLike | None = None,
    logging_steps: int = 10,
    validation_steps: int | None = None,
    validate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    max_nonfinite_steps: int = 5,
) -> nn.Module:
    """Train every parameter of `module` that requires gradients; checkpoint, log, validate, resume.

    Args:
        accelerator (`Accelerator`): One process or DDP. Trackers, if any, are started by the caller.
        module (`nn.Module`): Around everything that trains; its train and eval modes are left as they are.
        loss_fn (`Callable`):
            `loss_fn(module, batch) -> (loss, logs)`: the mean loss of the batch, a scalar tensor, and floats or scalar
            tensors to log. It calls the `module` that it is given, which is the prepared one.
        dataset (`Dataset`): Map-style; item `n` is the sample at global position `n`, all its random draws made.
        output_dir (`str` or `os.PathLike`): Folder for checkpoints and `log.jsonl`.
        max_train_steps (`int`): Optimizer steps of the whole run, those before a resumption included.
        train_batch_size (`int`): Samples of one micro-batch of one process.
        learning_rate (`float`): Peak of the schedule.
        gradient_accumulation_steps (`int`): Micro-batches of one optimizer step.
        lr_scheduler, lr_warmup_steps (`str`, `int`): Name for `diffusers.optimization.get_scheduler`; warm-up.
        adam_beta1, adam_beta2, adam_weight_decay, adam_epsilon (`float`): AdamW.
        max_grad_norm (`float`, *optional*): Clip the norm over all trained parameters; `None` does not clip.
        ema_decay (`float`, *optional*): Average the weights; the average is what is validated and returned.
        seed (`int`): Seeds torch anew before each step, for modules that draw by themselves (dropout).
        dataloader_num_workers (`int`): Worker processes for the data, 0 for none.
        collate_fn (`Callable`, *optional*): Samples to a batch; torch's default stacks dicts of tensors.
        checkpointing_steps (`int`, *optional*): A checkpoint every so many steps; the last step always gets one.
        checkpoints_total_limit (`int`, *optional*): How many checkpoints to keep, `None` for all.
        resume_from_checkpoint (`str` or `os.PathLike`, *optional*): `"latest"` (or none there yet), or a folder.
        logging_steps (`int`): Log the means over so many steps.
        validation_steps (`int`, *optional*): Validate every so many steps and after the last.
        validate (`Callable`, *optional*):
            `validate(module, global_step) -> floats to log`, on the main process, in eval mode, with the average.
        max_nonfinite_steps (`int`): Stop after so many steps in a row without a finite loss or gradient.
    Returns:
        `nn.Module`: `module`, unwrapped, with the averaged weights if `ema_decay` is given.
    Raises:
        ValueError: If an argument is out of range or a checkpoint does not fit.
        RuntimeError: If the loss stays non-finite, or a checkpoint cannot be written.
        TrainingInterrupted: After SIGTERM or SIGINT, once the step is finished and its checkpoint is written.
    """
    settings = _Settings(
        output_dir=Path(output_dir),
        max_train_steps=max_train_steps,
        train_batch_size=train_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        checkpointing_steps=checkpointing_steps,
        checkpoints_total_limit=checkpoints_total_limit,
        logging_steps=logging_steps,
        validation_steps=validation_steps,
        max_nonfinite_steps=max_nonfinite_steps,
        max_grad_norm=math.inf if max_grad_norm is None else max_grad_norm,
        seed=seed,
    )
    _check(accelerator, module, settings)
    checkpoint = resolve_checkpoint(output_dir, resume_from_checkpoint)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=learning_rate,
        betas=(adam_beta1, adam_beta2),
        weight_decay=adam_weight_decay,
        eps=adam_epsilon,
        # Fused AdamW on the CPU updates wrongly, without a word, where a parameter is channels_last and its gradient
        # contiguous (as after a flattened all-reduce).
        fused=False,
    )
    accelerator.gradient_accumulation_steps = gradient_accumulation_steps
    lr_curve = get_lr_curve(lr_scheduler, learning_rate, lr_warmup_steps, max_train_steps)
    try:
        run = _Run(accelerator, module, optimizer, settings, lr_curve, ema_decay)
        if checkpoint is not None:
            run.resume(checkpoint)
        if accelerator.is_main_process:
            start_log(output_dir, run.global_step)
        with StopSignals() as stop, closing(run.load_data(dataset, dataloader_num_workers, collate_fn)) as batches:
            run.fit(loss_fn, batches, validate, stop)
        return run.finish()
    finally:
        # Forget this module and optimizer, so that one accelerator serves several trainings one after another.
        accelerator.free_memory()


@dataclass(frozen=True)
class _Settings:
    output_dir: Path
    max_train_steps: int
    train_batch_size: int
    gradient_accumulation_steps: int
    checkpointing_steps: int | None
    checkpoints_total_limit: int | None
    logging_steps: int
    validation_steps: int | None
    max_nonfinite_steps: int
    max_grad_norm: float
    seed: int

    def is_due(self, every: int | None, global_step: int) -> bool:
        """Whether something done every so many steps, and after the last, is to be done now."""
        return global_step == self.max_train_steps or (every is not None and global_step % every == 0)


def _check(accelerator: Accelerator, module: nn.Module, settings: _Settings) -> None:
    for name, value in vars(settings).items():
        if name not in ("output_dir", "max_grad_norm", "seed") and value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("`module` must have parameters that require gradients, got none.")
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        # Their weights and states lie in pieces, which the checkpoints here do not put together.
        raise ValueError(f"`accelerator` must run one process or DDP, got {accelerator.distributed_type}.")


class _Run:
    """One training run: its prepared parts and how far it is."""

    def __init__(self, accelerator, module, optimizer, settings, lr_curve, ema_decay):
        self.accelerator = accelerator
        self.settings = settings
        self.lr_curve = lr_curve
        self.raw_optimizer = optimizer
        self.prepared, self.optimizer = accelerator.prepare(module, optimizer)
        self.module = accelerator.unwrap_model(self.prepared)
        self.trained = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        self.ema = None
        if ema_decay is not None:
            self.ema = EMAModel(self.trained.values(), decay=ema_decay, foreach=True)
            self.ema.to(dtype=torch.float32)
        local_batch = settings.train_batch_size * settings.gradient_accumulation_steps
        self.global_batch = local_batch * accelerator.num_processes
        # What a checkpoint's state.json carries on.
        self.global_step = 0
        self.num_samples = 0
        self.num_skipped_steps = 0
        self.num_nonfinite_in_row = 0
        self.saved_step = None
        self.window = LogWindow()

    def resume(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)
        restore_tensors(collect_module_tensors(self.module), tensors["model"], "model weights")
        restore_optimizer_state(self.raw_optimizer, self.trained, tensors["optimizer"])
        if self.ema is not None and "ema" in tensors:
            restore_tensors(dict(zip(self.trained, self.ema.shadow_params)), tensors["ema"], "averaged weights")
            self.ema.optimization_step = state["ema_optimization_step"]
        elif self.ema is not None:
            logger.warning(f"{path} has no averaged weights: the average starts from its weights.")
            self.ema.shadow_params = [value.detach().clone().float() for value in self.trained.values()]
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if state["world"]["global_batch_size"] != self.global_batch:
            logger.warning(
                f"The global batch size changes from {state['world']['global_batch_size']} to {self.global_batch};"
                f" going on at sample {state['num_samples']}, unlike an undisturbed run."
            )
        for name in ("global_step", "num_samples", "num_skipped_steps"):
            setattr(self, name, state[name])
        if path.resolve().parent == self.settings.output_dir.resolve():
            self.saved_step = self.global_step
        self.accelerator.print(f"Resumed from {path}, at step {self.global_step}.", file=sys.stderr)

    def save(self) -> None:
        if self.saved_step == self.global_step:
            return
        tensors = {
            "model": collect_module_tensors(self.module),
            "optimizer": flatten_optimizer_state(self.raw_optimizer, self.trained),
        }
        if self.ema is not None:
            tensors["ema"] = dict(zip(self.trained, self.ema.shadow_params))
        scaler = self.accelerator.scaler
        state = {
            "num_samples": self.num_samples,
            "num_skipped_steps": self.num_skipped_steps,
            "ema_optimization_step": None if self.ema is None else self.ema.optimization_step,
            "scaler": None if scaler is None else scaler.state_dict(),
            "world": {
                "num_processes": self.accelerator.num_processes,
                "train_batch_size": self.settings.train_batch_size,
                "gradient_accumulation_steps": self.settings.gradient_accumulation_steps,
                "global_batch_size": self.global_batch,
                "max_train_steps": self.settings.max_train_steps,
                "mixed_precision": self.accelerator.mixed_precision,
            },
        }
        if self.accelerator.is_main_process:
            save_checkpoint(self.settings.output_dir, self.global_step, tensors, state)
            rotate_checkpoints(self.settings.output_dir, self.settings.checkpoints_total_limit)
        self.saved_step = self.global_step
        self.accelerator.wait_for_everyone()

    def load_data(self, dataset, num_workers, collate_fn) -> Generator[Any, None, None]:
        """Batches from where the run is; closing the generator ends the worker processes at once."""
        sampler = PositionBatchSampler(
            self.num_samples,
            max(self.settings.max_train_steps - self.global_step, 0),
            self.settings.train_batch_size,
            self.settings.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        # Not prepared by accelerate, which would shard it again; with its own generator, or starting it would draw
        # from the one that the step is seeded with.
        yield from DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator(),
        )

    def fit(self, loss_fn, batches, validate, stop) -> None:
        settings = self.settings
        progress = tqdm(
            total=settings.max_train_steps,
            initial=self.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        )
        with progress:
            while self.global_step < settings.max_train_steps:
                signum = self.step(loss_fn, batches, stop)
                progress.update()
                if settings.is_due(settings.logging_steps, self.global_step):
                    record = self.window.reduce() | {"num_skipped_steps": self.num_skipped_steps}
                    self.window = LogWindow()
                    self.log(record)
                    shown = {name: record[name] for name in ("loss", "lr", "samples_per_second") if name in record}
                    progress.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
                if signum or settings.is_due(settings.checkpointing_steps, self.global_step):
                    self.save()
                if signum:
                    raise self.interruption(signum)
                can_validate = validate is not None and settings.validation_steps is not None
                if can_validate and settings.is_due(settings.validation_steps, self.global_step):
                    self.validate(validate)

    def step(self, loss_fn, batches, stop) -> int:
        """One optimizer step over its micro-batches; returns the signal that some process got, or 0."""
        start = time.perf_counter()
        seed_step(self.settings.seed, self.global_step, self.accelerator.process_index)
        losses = []
        for _ in range(self.settings.gradient_accumulation_steps):
            batch = send_to_device(next(batches), self.accelerator.device, non_blocking=True)
            with self.accelerator.accumulate(self.prepared):
                loss, logs = loss_fn(self.prepared, batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach().float())
            self.window.add(logs)
        # One small exchange a step, so that all processes agree on skipping and on stopping.
        shared = torch.stack([torch.stack(losses).mean(), torch.tensor(float(stop.signum), device=losses[0].device)])
        shared = self.accelerator.gather(shared[None]).cpu()
        loss, signum = shared[:, 0].mean().item(), int(shared[:, 1].max().item())
        lr = self.lr_curve(self.global_step)
        grad_norm = self.update(lr) if math.isfinite(loss) else math.nan
        self.raw_optimizer.zero_grad(set_to_none=True)
        self.global_step += 1
        self.num_samples += self.global_batch
        self.window.num_samples += self.global_batch
        self.window.seconds += time.perf_counter() - start
        self.window.add({"loss": loss, "lr": lr, "grad_norm": grad_norm})
        self.count_nonfinite(loss, grad_norm)
        return signum

    def update(self, lr: float) -> float:
        """Clip and step the optimizer and the average; returns the norm of the gradients before clipping."""
        self.raw_optimizer.param_groups[0]["lr"] = lr
        grad_norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.settings.max_grad_norm).item()
        # A scaler must see its overflows to lower its scale; without one, such a step would ruin the weights.
        if self.accelerator.scaler is not None or math.isfinite(grad_norm):
            self.optimizer.step()
            if self.ema is not None and not self.optimizer.step_was_skipped:
                self.ema.step(self.trained.values())
        return grad_norm

    def count_nonfinite(self, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.num_nonfinite_in_row = 0
            return
        self.num_skipped_steps += 1
        if math.isfinite(loss) and self.accelerator.scaler is not None:
            return
        self.num_nonfinite_in_row += 1
        logger.warning(f"Step {self.global_step} was skipped: loss {loss}, gradient norm {grad_norm}.")
        if self.num_nonfinite_in_row >= self.settings.max_nonfinite_steps:
            raise RuntimeError(
                f"Training stopped at step {self.global_step}: no finite loss and gradient in the last"
                f" {self.num_nonfinite_in_row} steps. Checkpoints in {self.settings.output_dir} are from before."
            )

    def interruption(self, signum: int) -> TrainingInterrupted:
        self.accelerator.print(
            f"Stopped by {signal.Signals(signum).name} after step {self.global_step} of"
            f" {self.settings.max_train_steps}; the checkpoint is written. The same command with"
            " `--resume_from_checkpoint latest` goes on from there.",
            file=sys.stderr,
        )
        return TrainingInterrupted(128 + signum)

    def validate(self, validate) -> None:
        if self.accelerator.is_main_process:
            modes = {part: part.training for part in self.module.modules()}
            self.module.eval()
            if self.ema is not None:
                self.ema.store(self.trained.values())
                self.ema.copy_to(self.trained.values())
            try:
                with torch.no_grad():
                    self.log(dict(validate(self.module, self.global_step)))
            finally:
                if self.ema is not None:
                    self.ema.restore(self.trained.values())
                for part, mode in modes.items():
                    part.training = mode
        self.accelerator.wait_for_everyone()

    def log(self, record: Mapping[str, float]) -> None:
        """To the trackers, and as one line of the log file."""
        self.accelerator.log(dict(record), step=self.global_step)
        if self.accelerator.is_main_process:
            append_log(self.settings.output_dir, self.global_step, record)

    def finish(self) -> nn.Module:
        if self.ema is not None:
            self.ema.copy_to(self.trained.values())
        return self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
