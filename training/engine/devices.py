# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Which device of this machine is meant, and what it must have."""

import torch
from accelerate.utils import is_bnb_available


def check_device(device: str | torch.device) -> torch.device:
    """The device of that name.

    Args:
        device (`str` or `torch.device`): As torch names it.
    Raises:
        ValueError: If this machine has none of that name, or it keeps no values, as `meta` does.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"`device` must be one of this machine, got {str(device)!r}: {reason}") from error
    return torch.device(device)


def check_bitsandbytes(argument: str, device: str | torch.device) -> None:
    """Raise a `ValueError` that names `argument` unless bitsandbytes is installed and the device is a CUDA one."""
    device, installed = torch.device(device), "is" if is_bnb_available() else "is not"
    if device.type != "cuda" or installed == "is not":
        raise ValueError(
            f"`{argument}` must go with CUDA and bitsandbytes, got {device.type}; bitsandbytes {installed} installed."
        )
