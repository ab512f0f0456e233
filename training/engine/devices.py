# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Choosing and checking the device."""

import torch
from accelerate.utils import is_bnb_available


def check_device(device: str | torch.device) -> torch.device:
    """Return the device of that name.

    Raises:
        ValueError: If this machine has no such device, or it stores no values, like `meta`.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"`device` must be one of this machine, got {str(device)!r}: {reason}") from error
    return torch.device(device)


def check_bitsandbytes(argument: str, device: str | torch.device) -> None:
    """Raise a `ValueError` that names `argument` unless bitsandbytes is installed and `device` is a CUDA device."""
    device, installed = torch.device(device), "is" if is_bnb_available() else "is not"
    if device.type != "cuda" or installed == "is not":
        raise ValueError(
            f"`{argument}` must go with CUDA and bitsandbytes, got {device.type}; bitsandbytes {installed} installed."
        )
