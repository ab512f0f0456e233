# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The training loop of all trainers: train a module on a dataset with a loss function, on accelerate.

A step depends only on its number and a sample only on its position, so a resumed run equals an undisturbed one.

The files of `training/engine` hold the parts of a run:
- session: start and end of accelerate, trackers and seed; trackers: TensorBoard and Weights & Biases
- batches: batches of one process; schedule: sample positions, learning rate and seed of a step
- optimizer: AdamW and Muon (muon), and saving their state
- run_state: weights, optimizer, average and counts; run_log: `log.jsonl`
- checkpoints: their folders on disk; state_file: their `state.json` and hashes
- interruption: signals and full disks; errors: what ends a run; output_lock: one run per folder
- devices: checks of the device; precision: dtype and place of frozen weights
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
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
from training.engine.errors import RunStopped
from training.engine.interruption import StopSignals, TrainingInterrupted
from training.engine.optimizer import build_optimizer
from training.engine.run_log import LogWindow, append_log, measure_memory, read_figures, start_log
from training.engine.run_state import RunState
from training.engine.schedule import get_lr_curve, seed_step
from training.engine.state_file import require_keys


logger = get_logger(__name__)

LossFunction = Callable[[nn.Module, Mapping[str, Any]], tuple[torch.Tensor, Mapping[str, Any]]]
# Arguments that must be at least 1, if they are given.
COUNTS = (
    *("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps"),
    *("checkpoints_total_limit", "logging_steps", "validation_steps", "max_nonfinite_steps"),
)


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
    description: str = "training",
) -> nn.Module:
    """Train every parameter of `module` that requires gradients; checkpoint, log, validate, resume.

    Args:
        accelerator (`Accelerator`): One process or DDP. The caller starts and ends its trackers.
        module (`nn.Module`): Contains everything that trains. Its train and eval modes stay as they are.
        loss_fn (`Callable`):
            `loss_fn(module, batch) -> (loss, logs)`: the mean loss of the batch as a scalar tensor, and floats or
            scalar tensors to log. It must call the `module` it is given, which is the prepared one. If it has an
            attribute `averaged`, [`RunState.averaged`] takes its place: `with loss_fn.averaged():` the module has its
            averaged weights.
        dataset (`Dataset`):
            Item `n` is the sample at global position `n`, with all its random draws made; or a stream (see
            `training.engine.batches`), where a resumed run starts near its last sample.
        output_dir (`str` or `os.PathLike`): Folder for checkpoints and `log.jsonl`.
        max_train_steps (`int`): Optimizer steps of the whole run, including those before a resumption.
        train_batch_size (`int`): Samples per micro-batch and process.
        learning_rate (`float`): Peak of the schedule.
        gradient_accumulation_steps (`int`): Micro-batches per optimizer step.
        lr_scheduler, lr_warmup_steps, lr_num_cycles, lr_power:
            As in `diffusers.optimization.get_scheduler`; cycles apply to `cosine_with_restarts`, power to
            `polynomial`.
        optimizer (`str`): `"adamw"` or `"muon"`, see [`training.engine.optimizer.build_optimizer`].
        adam_beta1, adam_beta2, adam_weight_decay, adam_epsilon (`float`): Settings of either optimizer.
        use_8bit_adam (`bool`): Keep AdamW's moments in 8 bit (bitsandbytes, CUDA).
        max_grad_norm (`float`, *optional*): Clip the gradient norm over all trained parameters; `None` does not clip.
        ema_decay (`float`, *optional*): Average the weights. The average is validated and returned.
        seed (`int`): Seeds torch before each step, for modules that draw random numbers themselves (dropout).
        dataloader_num_workers (`int`): Worker processes for the data, 0 for none.
        checkpointing_steps (`int`, *optional*): Steps between checkpoints. The last step always gets one.
        checkpoints_total_limit (`int`, *optional*): Number of checkpoints to keep, `None` for all.
        resume_from_checkpoint (`str` or `os.PathLike`, *optional*): Folder, or `"latest"` for the newest if any.
        logging_steps (`int`): Steps between log records, which hold the means over these steps.
        validation_steps (`int`, *optional*): Steps between validations. The last step always gets one.
        validate (`Callable`, *optional*):
            `validate(module, global_step) -> floats`, logged with the prefix `validation/`. It runs on the main
            process in eval mode with the averaged weights. The other processes wait and may pass `None`.
        max_nonfinite_steps (`int`): Stop after this many steps in a row without a finite loss or gradient.
        tracker_prefix, first_tracker_step (`str`, `int`):
            Prefix of names and offset of steps in the trackers, for a second training in the same trackers.
        description (`str`): What trains, for the progress bar.
    Returns:
        `nn.Module`: `module`, unwrapped, with the averaged weights if `ema_decay` is given.
    Raises:
        ValueError: If an argument is out of range or a checkpoint does not fit.
        RunStopped: If the loss stays non-finite or a checkpoint cannot be written. Earlier ones are untouched.
        TrainingInterrupted: After SIGTERM, SIGINT or SIGHUP, once the step is finished and its checkpoint is written.
    """
    settings = SimpleNamespace(**locals())  # all arguments by name; this must stay the first statement
    for name in COUNTS:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("`module` must have parameters that require gradients, got none.")
    checkpoint = resolve_checkpoint(output_dir, resume_from_checkpoint)
    module.to(accelerator.device)  # before the optimizer is built over its parameters
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    adam = ((adam_beta1, adam_beta2), adam_weight_decay, adam_epsilon, use_8bit_adam)
    torch_optimizer = build_optimizer(trained, learning_rate, *adam, optimizer)
    accelerator.gradient_accumulation_steps = gradient_accumulation_steps
    lr_curve = get_lr_curve(lr_scheduler, learning_rate, lr_warmup_steps, max_train_steps, lr_num_cycles, lr_power)
    try:
        run = _Run(settings, torch_optimizer, lr_curve)
        run.resume(checkpoint)
        if accelerator.is_main_process:
            start_log(output_dir, run.state.global_step)
        counts = (max_train_steps - run.state.global_step, train_batch_size, gradient_accumulation_steps)
        batches = load_batches(dataset, run.state, *counts, dataloader_num_workers, run.saved_positions)
        with StopSignals() as stop, closing(batches):
            run.fit(batches, stop)
        run.state.take_average()
        return accelerator.unwrap_model(run.prepared, keep_fp32_wrapper=False, keep_torch_compile=False)
    finally:
        # Forget this module and optimizer, so that the accelerator can serve another training.
        accelerator.free_memory()


class _Run:
    """One training run with the arguments of [`train`] as its settings: its prepared parts and its state."""

    def __init__(self, settings, optimizer, lr_curve):
        self.settings, self.lr_curve = settings, lr_curve
        self.accelerator = accelerator = settings.accelerator
        self.prepared, self.optimizer = accelerator.prepare(settings.module, optimizer)
        # Unwrap torch.compile too, whose prefix would change the names of the weights.
        unwrapped = accelerator.unwrap_model(self.prepared, keep_torch_compile=False)
        self.state = RunState(accelerator, unwrapped, optimizer, settings.ema_decay)
        local_batch = settings.train_batch_size * settings.gradient_accumulation_steps
        self.global_batch = local_batch * accelerator.num_processes
        if hasattr(settings.loss_fn, "averaged"):
            settings.loss_fn.averaged = self.state.averaged
        self.num_nonfinite_in_row = 0
        self.saved_positions = None  # stream positions in the checkpoint from which the run resumes

    def resume(self, path: Path | None) -> None:
        """Resume from a checkpoint, if there is one. All processes must have found the same one."""
        if path is not None:
            state = self.state.load(path)
            require_keys(path, state["world"], "global_batch_size")
            self.saved_positions = state.get("stream_positions")
            if state["world"]["global_batch_size"] != self.global_batch:
                logger.warning(
                    f"The global batch size changes from {state['world']['global_batch_size']} to {self.global_batch};"
                    f" the run resumes at sample {state['num_samples']}, unlike an undisturbed one. The step count"
                    " continues, so give `max_train_steps`: epochs are counted in batches of the new size."
                )
            self.accelerator.print(f"Resumed from {path}, at step {self.state.global_step}.", file=sys.stderr)
        steps = gather_object([self.state.global_step])
        if len(set(steps)) > 1:
            raise ValueError(f"`output_dir` must be one folder for all processes, got checkpoints of steps {steps}.")
        check_last_step(steps[0], self.settings.max_train_steps)

    def save(self) -> None:
        settings = self.settings
        world = {
            "num_processes": self.accelerator.num_processes,
            "train_batch_size": settings.train_batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            "global_batch_size": self.global_batch,
            "max_train_steps": settings.max_train_steps,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        self.state.save(Path(settings.output_dir), settings.checkpoints_total_limit, world)

    def fit(self, batches, stop) -> None:
        settings = self.settings
        steps = {"total": settings.max_train_steps, "initial": self.state.global_step, "unit": "step"}
        steps |= {"desc": settings.description, "dynamic_ncols": True}
        with tqdm(**steps, disable=not self.accelerator.is_main_process) as progress:
            if self.state.global_step > 0:
                self.validate(only_missing=True)
            while self.state.global_step < settings.max_train_steps:
                signum = self.step(batches, stop)
                progress.update()
                if self.is_due(settings.logging_steps):
                    record = self.state.window.reduce() | {"num_skipped_steps": self.state.num_skipped_steps}
                    self.log(record | measure_memory(self.accelerator.device))
                    self.state.window = LogWindow()
                    shown = {name: record[name] for name in ("loss", "lr", "samples_per_second") if name in record}
                    progress.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
                if signum or self.is_due(settings.checkpointing_steps):
                    self.save()
                if signum:
                    self.accelerator.print(
                        f"Stopped by {signal.Signals(signum).name} after step {self.state.global_step} of"
                        f" {settings.max_train_steps}; its checkpoint is written. To resume, run the same command with"
                        " `--resume_from_checkpoint latest`.",
                        file=sys.stderr,
                    )
                    raise TrainingInterrupted(128 + signum)
                self.validate()

    def is_due(self, every: int | None) -> bool:
        """Return whether work that is done every `every` steps, and after the last step, is due now."""
        step = self.state.global_step
        return step == self.settings.max_train_steps or (every is not None and step % every == 0)

    def step(self, batches, stop) -> int:
        """Do one optimizer step over its micro-batches. Return the signal that some process received, or 0."""
        start = time.perf_counter()
        seed_step(self.settings.seed, self.state.global_step, self.accelerator.process_index)
        losses = []
        for _ in range(self.settings.gradient_accumulation_steps):
            batch = send_to_device(next(batches), self.accelerator.device, non_blocking=True)
            with self.accelerator.accumulate(self.prepared):
                loss, logs = self.settings.loss_fn(self.prepared, batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach().float())
            self.state.window.add(logs)
        # One small exchange per step makes all processes agree on skipping and stopping.
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
        """Clip the gradients, then step the optimizer and the average. Return the gradient norm before clipping."""
        self.state.optimizer.param_groups[0]["lr"] = lr
        limit = math.inf if self.settings.max_grad_norm is None else self.settings.max_grad_norm
        grad_norm = self.accelerator.clip_grad_norm_(self.state.trained.values(), limit).item()
        is_finite = math.isfinite(grad_norm)
        # A scaler must see overflows to lower its scale. Without a scaler, such a step would ruin the weights.
        if self.accelerator.scaler is not None or is_finite:
            self.optimizer.step()
        # `step_was_skipped` does not help: a fused optimizer skips an overflow by itself, unseen by accelerate.
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
            return  # an overflow; the scaler lowers its scale
        self.num_nonfinite_in_row += 1
        logger.warning(f"Step {self.state.global_step} was skipped: loss {loss}, gradient norm {grad_norm}.")
        if self.num_nonfinite_in_row >= self.settings.max_nonfinite_steps:
            raise RunStopped(
                f"Training stopped at step {self.state.global_step}: no finite loss and gradient in the last"
                f" {self.num_nonfinite_in_row} steps. The checkpoints in {self.settings.output_dir} are from before; a"
                " lower `--learning_rate` may help."
            )

    def validate(self, only_missing: bool = False) -> None:
        """Validate if it is due. With `only_missing`, skip it if an earlier run has logged this step's validation."""
        if self.settings.validation_steps is None or not self.is_due(self.settings.validation_steps):
            return
        if self.accelerator.is_main_process and self.settings.validate is not None:
            if not (only_missing and read_figures(self.settings.output_dir, self.state.global_step, "validation/")):
                self.measure()
        self.accelerator.wait_for_everyone()

    def measure(self) -> None:
        """Run `validate` with the averaged weights and log its values."""
        modes = {part: part.training for part in self.state.module.modules()}
        self.state.module.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast(), self.state.averaged():
                figures = self.settings.validate(self.state.module, self.state.global_step)
            self.log({f"validation/{name}": value for name, value in figures.items()})
        finally:
            for part, mode in modes.items():
                part.training = mode

    def log(self, record: Mapping[str, float]) -> None:
        """Send a record to the trackers and append it to the log file."""
        tracked = {self.settings.tracker_prefix + name: value for name, value in record.items()}
        self.accelerator.log(tracked, step=self.settings.first_tracker_step + self.state.global_step)
        if self.accelerator.is_main_process:
            append_log(self.settings.output_dir, self.state.global_step, record)
