# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Hold frozen modules in half precision or on the CPU while others train in float32.

Modules are moved by `nn.Module.to`: diffusers' own `to` would warn about parts that must stay in float32, which these
modules do not have.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn


def weight_dtype(accelerator: Accelerator) -> torch.dtype:
    """Return the dtype of frozen weights for the run's mixed precision."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


@contextmanager
def held_in(dtype: torch.dtype, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Hold frozen modules, each of a single dtype, in another dtype. Afterwards restore their exact original weights.

    Raises:
        ValueError: If a module has a parameter that trains.
    """
    for module in modules:
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(f"`modules` must be frozen, got a {type(module).__name__} that trains {trained[0]}.")
    originals = []
    try:
        for module in modules:
            original_dtype = next(module.parameters()).dtype
            if original_dtype != dtype:
                tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}
                originals.append((module, original_dtype, tensors))
                nn.Module.to(module, dtype=dtype)
        yield
    finally:
        for module, original_dtype, tensors in originals:
            nn.Module.to(module, dtype=original_dtype)
            module.load_state_dict(tensors)


@contextmanager
def held_on_cpu(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Keep unused modules, each on a single device, in the CPU's memory. Afterwards move them back."""
    devices = [next(module.parameters()).device for module in modules]
    try:
        for module in modules:
            nn.Module.to(module, "cpu")
        yield
    finally:
        for module, device in zip(modules, devices):
            nn.Module.to(module, device)
