# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Start and end of every training run: accelerate, trackers and seed."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list, set_seed

from training.engine.devices import check_bitsandbytes
from training.engine.interruption import explaining_full_disk
from training.engine.output_lock import LOCK_NAME, locked_output
from training.engine.trackers import installed_trackers, start_trackers


logger = logging.getLogger(__name__)


@contextmanager
def open_session(
    output_dir: str | os.PathLike,
    settings: Mapping[str, Any],
    seed: int = 0,
    mixed_precision: str | None = None,
    report_to: str | None = None,
    allow_tf32: bool = False,
    use_8bit_adam: bool = False,
    quantize_base: bool = False,
    first_step: int = 0,
) -> Iterator[Accelerator]:
    """Yield an accelerator with its trackers started, and end the trackers however the session ends.

    A tracker that fails to end causes a warning only, so the others still end and the run's own error is raised.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run. TensorBoard writes to `logs` in it.
        settings (`Mapping`): Settings of the run, for the trackers.
        seed (`int`, *optional*, defaults to 0): Seeds python, numpy and torch.
        mixed_precision (`str`, *optional*): `"no"`, `"fp16"`, `"bf16"`, or `None` for accelerate's own setting.
        report_to (`str`, *optional*): A tracker, or `"all"` installed ones.
        allow_tf32 (`bool`, *optional*, defaults to `False`): Multiply float32 matrices in TensorFloat-32 on CUDA.
        use_8bit_adam (`bool`, *optional*, defaults to `False`): Whether an optimizer of the run needs bitsandbytes.
        quantize_base (`bool`, *optional*, defaults to `False`): Whether the weights it loads need bitsandbytes.
        first_step (`int`, *optional*, defaults to 0): Step at which the run starts or resumes, for the trackers.
    Raises:
        ValueError: If another run uses `output_dir`, a tracker or bitsandbytes is missing, a tracker does not start,
            fp16 is asked of a CPU, or accelerate uses anything but one process or DDP.
        RunStopped: If the disk is full.
    """
    trackers = installed_trackers(report_to)
    matmul_precision = torch.get_float32_matmul_precision()
    if allow_tf32:
        torch.set_float32_matmul_precision("high")
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(output_dir), logging_dir=os.path.join(output_dir, "logs")),
        # A process waits long for the others to finish a large latent cache, or for a validation.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        # These split weights and optimizer states into pieces, which our checkpoints cannot join.
        raise ValueError(f"accelerate must run one process or DDP, got {accelerator.distributed_type}.")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # accelerate would train in float32 there, beside frozen weights in float16.
        raise ValueError("`mixed_precision` must be no or bf16 on a CPU, which cannot train in fp16, got fp16.")
    for name, is_needed in (("use_8bit_adam", use_8bit_adam), ("quantize_base", quantize_base)):
        if is_needed:
            check_bitsandbytes(name, accelerator.device)
    set_seed(seed)
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, matmul_precision)
        fault = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(locked_output(Path(output_dir) / LOCK_NAME, "output_dir"))
                start_trackers(accelerator, trackers, output_dir, settings, first_step)
                stack.callback(_end_trackers, accelerator)
            except (OSError, ValueError) as error:
                fault = error
        fault = broadcast_object_list([fault])[0]  # so that no process waits for the main one
        if fault is not None:
            raise fault if accelerator.is_main_process else SystemExit(1)
        with explaining_full_disk(output_dir):
            yield accelerator
    accelerator.state.destroy_process_group()


def _end_trackers(accelerator: Accelerator) -> None:
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:  # a tracker's package or server may raise anything
            logger.warning(f"The tracker {tracker.name} could not be ended: {error}")
