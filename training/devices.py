# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Which device of this machine is meant."""

import torch


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
