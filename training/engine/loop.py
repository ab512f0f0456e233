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
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object, send_to_device
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from training.engine.batches import load_batches
from training.engine.checkpoints import check_last_step, resolve_checkpoint
from training.engine.interruption import StopSignals, TrainingInterrupted
from training.engine.optimizer import build_optimizer
from training.engine.run_log import LogWindow, append_log, measure_memory, read_figures, start_log
from training.engine.run_state import RunState
from training.engine.schedule import get_lr_curve, seed_step


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
    lr_num_cycles: int = 1,
    lr_power: float = 1.0,
    optimizer: str = "adamw",
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_weight_decay: float = 1e-2,
    adam_epsilon: float = 1e-8,
    use_8bit_adam: bool = False,
    max_grad_norm: float | None = 1.0,
    ema_decay: float | None = None,
    seed: int = 0,
    dataloader_num_workers: int = 0,
    checkpointing_steps: int | None = 500,
    checkpoints_total_limit: int | None = 2,
    resume_from_checkpoint: str | os.PathLike | None = None,
    logging_steps: int = 10,
    validation_steps: int | None = None,
    validate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    max_nonfinite_steps: int = 5,
    tracker_prefix: str = "",
    first_tracker_step: int = 0,
) -> nn.Module:
    """Train every parameter of `module` that requires gradients; checkpoint, log, validate, resume.

    Args:
        accelerator (`Accelerator`): One process or DDP. Its trackers are started and ended by the caller.
        module (`nn.Module`): Around everything that trains; its train and eval modes are left as they are.
        loss_fn (`Callable`):
            `loss_fn(module, batch) -> (loss, logs)`: the mean loss of the batch, a scalar tensor, and floats or scalar
            tensors to log. It calls the `module` that it is given, which is the prepared one.
        dataset (`Dataset`):
            Item `n` is the sample at global position `n`, all its random draws made; or a stream, as
            `training.engine.batches` has them, which a resumed run goes on with near to where it was.
        output_dir (`str` or `os.PathLike`): Folder for checkpoints and `log.jsonl`.
        max_train_steps (`int`): Optimizer steps of the whole run, those before a resumption included.
        train_batch_size (`int`): Samples of one micro-batch of one process.
        learning_rate (`float`): Peak of the schedule.
        gradient_accumulation_steps (`int`): Micro-batches of one optimizer step.
        lr_scheduler, lr_warmup_steps, lr_num_cycles, lr_power:
            As `diffusers.optimization.get_scheduler` takes them; cycles are of `cosine_with_restarts`, the power of
            `polynomial`.
        optimizer (`str`): `"adamw"` or `"muon"`, see [`training.engine.optimizer.build_optimizer`].
        adam_beta1, adam_beta2, adam_weight_decay, adam_epsilon (`float`): Its settings, whichever it is.
        use_8bit_adam (`bool`): AdamW's moments in 8 bit, by bitsandbytes on CUDA.
        max_grad_norm (`float`, *optional*): Clip the norm over all trained parameters; `None` does not clip.
        ema_decay (`float`, *optional*): Average the weights; the average is what is validated and returned.
        seed (`int`): Seeds torch anew before each step, for modules that draw by themselves (dropout).
        dataloader_num_workers (`int`): Worker processes for the data, 0 for none.
        checkpointing_steps (`int`, *optional*): A checkpoint every so many steps; the last step always gets one.
        checkpoints_total_limit (`int`, *optional*): How many checkpoints to keep, `None` for all.
        resume_from_checkpoint (`str` or `os.PathLike`, *optional*): `"latest"` (or none there yet), or a folder.
        logging_steps (`int`): Log the means over so many steps.
        validation_steps (`int`, *optional*): Validate every so many steps and after the last.
        validate (`Callable`, *optional*):
            `validate(module, global_step) -> floats to log` behind `validation/`, on the main process, in eval mode,
            with the average. The other processes wait, and need not have it.
        max_nonfinite_steps (`int`): Stop after so many steps in a row without a finite loss or gradient.
        tracker_prefix, first_tracker_step (`str`, `int`):
            What names begin with and steps are counted from in the trackers, which may have seen another training.
    Returns:
        `nn.Module`: `module`, unwrapped, with the averaged weights if `ema_decay` is given.
    Raises:
        ValueError: If an argument is out of range or a checkpoint does not fit.
        RuntimeError:
            If the loss stays non-finite or a checkpoint cannot be written; earlier ones are untouched then.
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
        tracker_prefix=tracker_prefix,
        first_tracker_step=first_tracker_step,
    )
    _check(module, settings)
    checkpoint = resolve_checkpoint(output_dir, resume_from_checkpoint)
    module.to(accelerator.device)  # where the optimizer is to find it
    torch_optimizer = build_optimizer(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        learning_rate,
        (adam_beta1, adam_beta2),
        adam_weight_decay,
        adam_epsilon,
        use_8bit_adam,
        optimizer,
    )
    accelerator.gradient_accumulation_steps = gradient_accumulation_steps
    lr_curve = get_lr_curve(lr_scheduler, learning_rate, lr_warmup_steps, max_train_steps, lr_num_cycles, lr_power)
    try:
        run = _Run(accelerator, module, torch_optimizer, settings, lr_curve, ema_decay)
        run.resume(checkpoint)
        if accelerator.is_main_process:
            start_log(output_dir, run.state.global_step)
        with StopSignals() as stop, closing(run.load_data(dataset, dataloader_num_workers)) as batches:
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
    tracker_prefix: str
    first_tracker_step: int

    def is_due(self, every: int | None, global_step: int) -> bool:
        """Whether something done every so many steps, and after the last, is to be done now."""
        return global_step == self.max_train_steps or (every is not None and global_step % every == 0)


def _check(module: nn.Module, settings: _Settings) -> None:
    others = ("output_dir", "max_grad_norm", "seed", "tracker_prefix", "first_tracker_step")
    for name, value in vars(settings).items():
        if name not in others and value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("`module` must have parameters that require gradients, got none.")


class _Run:
    """One training run: its prepared parts and its state."""

    def __init__(self, accelerator, module, optimizer, settings, lr_curve, ema_decay):
        self.accelerator = accelerator
        self.settings = settings
        self.lr_curve = lr_curve
        self.prepared, self.optimizer = accelerator.prepare(module, optimizer)
        # Names of weights are those without torch.compile, whatever accelerate is set to.
        unwrapped = accelerator.unwrap_model(self.prepared, keep_torch_compile=False)
        self.state = RunState(accelerator, unwrapped, optimizer, ema_decay)
        local_batch = settings.train_batch_size * settings.gradient_accumulation_steps
        self.global_batch = local_batch * accelerator.num_processes
        self.num_nonfinite_in_row = 0
        self.saved_step = None
        self.saved_positions = None  # of a stream, in the checkpoint that the run goes on from

    def resume(self, path: Path | None) -> None:
        """Go on from a checkpoint, if there is one; all processes must have found the same."""
        if path is not None:
            self.load(path)
        steps = gather_object([self.state.global_step])
        if len(set(steps)) > 1:
            raise ValueError(f"`output_dir` must be one folder for all processes, got checkpoints of steps {steps}.")
        check_last_step(steps[0], self.settings.max_train_steps)

    def load(self, path: Path) -> None:
        state = self.state.load(path)
        self.saved_positions = state.get("stream_positions")
        if state["world"]["global_batch_size"] != self.global_batch:
            logger.warning(
                f"The global batch size changes from {state['world']['global_batch_size']} to {self.global_batch};"
                f" going on at sample {state['num_samples']}, unlike an undisturbed run. Steps count on, so give"
                " `max_train_steps`: epochs are counted in batches of the new size."
            )
        if path.resolve().parent == self.settings.output_dir.resolve():
            self.saved_step = self.state.global_step
        self.accelerator.print(f"Resumed from {path}, at step {self.state.global_step}.", file=sys.stderr)

    def save(self) -> None:
        settings = self.settings
        if self.saved_step == self.state.global_step:
            return
        world = {
            "num_processes": self.accelerator.num_processes,
            "train_batch_size": settings.train_batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            "global_batch_size": self.global_batch,
            "max_train_steps": settings.max_train_steps,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        self.state.save(settings.output_dir, settings.checkpoints_total_limit, world)
        self.saved_step = self.state.global_step

    def load_data(self, dataset, num_workers) -> Generator[Any, None, None]:
        settings = self.settings
        num_steps = max(settings.max_train_steps - self.state.global_step, 0)
        sizes = (settings.train_batch_size, settings.gradient_accumulation_steps)
        return load_batches(dataset, self.state, num_steps, *sizes, num_workers, self.saved_positions)

    def fit(self, loss_fn, batches, validate, stop) -> None:
        settings = self.settings
        progress = tqdm(
            total=settings.max_train_steps,
            initial=self.state.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        )
        with progress:
            if self.state.global_step > 0:
                self.validate(validate, only_missing=True)
            while self.state.global_step < settings.max_train_steps:
                signum = self.step(loss_fn, batches, stop)
                progress.update()
                if settings.is_due(settings.logging_steps, self.state.global_step):
                    record = self.state.window.reduce() | {"num_skipped_steps": self.state.num_skipped_steps}
                    self.log(record | measure_memory(self.accelerator.device))
                    self.state.window = LogWindow()
                    shown = {name: record[name] for name in ("loss", "lr", "samples_per_second") if name in record}
                    progress.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
                if signum or settings.is_due(settings.checkpointing_steps, self.state.global_step):
                    self.save()
                if signum:
                    raise self.interruption(signum)
                self.validate(validate)

    def step(self, loss_fn, batches, stop) -> int:
        """One optimizer step over its micro-batches; returns the signal that some process got, or 0."""
        start = time.perf_counter()
        seed_step(self.settings.seed, self.state.global_step, self.accelerator.process_index)
        losses = []
        for _ in range(self.settings.gradient_accumulation_steps):
            batch = send_to_device(next(batches), self.accelerator.device, non_blocking=True)
            with self.accelerator.accumulate(self.prepared):
                loss, logs = loss_fn(self.prepared, batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach().float())
            self.state.window.add(logs)
        # One small exchange a step, so that all processes agree on skipping and on stopping.
        shared = torch.stack([torch.stack(losses).mean(), torch.tensor(float(stop.signum), device=losses[0].device)])
        shared = self.accelerator.gather(shared[None]).cpu()
        loss, signum = shared[:, 0].mean().item(), int(shared[:, 1].max().item())
        lr = self.lr_curve(self.state.global_step)
        grad_norm = self.update(lr) if math.isfinite(loss) else math.nan
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.global_step += 1
        self.state.num_samples += self.global_batch
        self.state.window.num_samples += self.global_batch
        self.state.window.seconds += time.perf_counter() - start
        self.state.window.add({"loss": loss, "lr": lr, "grad_norm": grad_norm})
        self.count_nonfinite(loss, grad_norm)
        return signum

    def update(self, lr: float) -> float:
        """Clip and step the optimizer and the average; returns the norm of the gradients before clipping."""
        self.state.optimizer.param_groups[0]["lr"] = lr
        grad_norm = self.accelerator.clip_grad_norm_(self.state.trained.values(), self.settings.max_grad_norm).item()
        is_finite = math.isfinite(grad_norm)
        # A scaler must see its overflows to lower its scale; without one, such a step would ruin the weights.
        if self.accelerator.scaler is not None or is_finite:
            self.optimizer.step()
        # Not by `step_was_skipped`: a fused optimizer passes over an overflow by itself, unseen by accelerate.
        if self.state.ema is not None and is_finite:
            self.state.ema.step(self.state.trained.values())
        return grad_norm

    def count_nonfinite(self, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.num_nonfinite_in_row = 0
            return
        self.state.num_skipped_steps += 1
        scaler = self.accelerator.scaler
        if math.isfinite(loss) and scaler is not None and scaler.get_scale() >= 1:
            return  # an overflow, for which the scale is lowered
        self.num_nonfinite_in_row += 1
        logger.warning(f"Step {self.state.global_step} was skipped: loss {loss}, gradient norm {grad_norm}.")
        if self.num_nonfinite_in_row >= self.settings.max_nonfinite_steps:
            raise RuntimeError(
                f"Training stopped at step {self.state.global_step}: no finite loss and gradient in the last"
                f" {self.num_nonfinite_in_row} steps. Checkpoints in {self.settings.output_dir} are from before."
            )

    def interruption(self, signum: int) -> TrainingInterrupted:
        self.accelerator.print(
            f"Stopped by {signal.Signals(signum).name} after step {self.state.global_step} of"
            f" {self.settings.max_train_steps}; the checkpoint is written. The same command with"
            " `--resume_from_checkpoint latest` goes on from there.",
            file=sys.stderr,
        )
        return TrainingInterrupted(128 + signum)

    def validate(self, validate, only_missing: bool = False) -> None:
        """Validate if it is due; with `only_missing` unless it is done, as where a run was killed before or in it."""
        settings, step = self.settings, self.state.global_step
        if settings.validation_steps is None or not settings.is_due(settings.validation_steps, step):
            return
        if self.accelerator.is_main_process and validate is not None:
            if not (only_missing and read_figures(settings.output_dir, step, "validation/")):
                self.measure(validate)
        self.accelerator.wait_for_everyone()

    def measure(self, validate) -> None:
        """Log what `validate` gives for the averaged weights."""
        modes = {part: part.training for part in self.state.module.modules()}
        self.state.module.eval()
        if self.state.ema is not None:
            self.state.ema.store(self.state.trained.values())
            self.state.take_average()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                figures = validate(self.state.module, self.state.global_step)
            self.log({f"validation/{name}": value for name, value in figures.items()})
        finally:
            if self.state.ema is not None:
                self.state.ema.restore(self.state.trained.values())
            for part, mode in modes.items():
                part.training = mode

    def log(self, record: Mapping[str, float]) -> None:
        """To the trackers, and as one line of the log file."""
        tracked = {self.settings.tracker_prefix + name: value for name, value in record.items()}
        self.accelerator.log(tracked, step=self.settings.first_tracker_step + self.state.global_step)
        if self.accelerator.is_main_process:
            append_log(self.settings.output_dir, self.state.global_step, record)

    def finish(self) -> nn.Module:
        self.state.take_average()
        return self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False, keep_torch_compile=False)
