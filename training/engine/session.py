# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""How every training run starts and ends: accelerate, its trackers, the seed."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed

from training.engine.devices import check_bitsandbytes
from training.engine.interruption import explaining_full_disk
from training.engine.trackers import installed_trackers, tracker_arguments


logger = logging.getLogger(__name__)

PROJECT_NAME = "dreampose"


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
    """An accelerator with its trackers started; they end with the session, however it ends. One that cannot end is a
    warning, so that the others do, and the run's own error, if there is one, is what is raised.

    Args:
        output_dir (`str` or `os.PathLike`): Of the run; TensorBoard's files go to `logs` in it.
        settings (`Mapping`): Of the run, for the trackers.
        seed (`int`, *optional*, defaults to 0): Of python, numpy and torch.
        mixed_precision (`str`, *optional*): `"no"`, `"fp16"`, `"bf16"`, or what accelerate is set to.
        report_to (`str`, *optional*): A tracker, or `"all"` that are installed.
        allow_tf32 (`bool`, *optional*, defaults to `False`): TensorFloat-32 for matrices of float32 on CUDA.
        use_8bit_adam (`bool`, *optional*, defaults to `False`): Whether an optimizer of the run wants bitsandbytes.
        quantize_base (`bool`, *optional*, defaults to `False`): Whether weights that it loads want bitsandbytes.
        first_step (`int`, *optional*, defaults to 0): Of a run that goes on, as
            `training.engine.trackers.tracker_arguments` takes it.
    Raises:
        ValueError:
            If a tracker or bitsandbytes is not installed, or accelerate is set to anything but one process or DDP.
        RuntimeError: If a file that the session writes finds no room on the disk.
    """
    trackers = installed_trackers(report_to)
    matmul_precision = torch.get_float32_matmul_precision()
    if allow_tf32:
        torch.set_float32_matmul_precision("high")
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(output_dir), logging_dir=os.path.join(output_dir, "logs")),
        # Who has made a share of a large latent cache, or waits for a validation, waits long.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        # Their weights and states lie in pieces, which the checkpoints here do not put together.
        raise ValueError(f"accelerate must run one process or DDP, got {accelerator.distributed_type}.")
    for name, is_wanted in (("use_8bit_adam", use_8bit_adam), ("quantize_base", quantize_base)):
        if is_wanted:
            check_bitsandbytes(name, accelerator.device)
    set_seed(seed)
    if trackers:
        # Hyperparameters of a tracker are plain values.
        plain = {key: value if isinstance(value, (int, float)) else str(value) for key, value in settings.items()}
        if accelerator.is_main_process:
            accelerator.init_trackers(PROJECT_NAME, plain, tracker_arguments(trackers, output_dir, first_step))
    try:
        with explaining_full_disk(output_dir):
            yield accelerator
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
        for tracker in accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:  # of whatever a tracker's package and its server do
                logger.warning(f"The tracker {tracker.name} could not be ended: {error}")
    accelerator.state.destroy_process_group()
