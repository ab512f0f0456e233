# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A frozen base in 4 bit under a LoRA (arXiv:2305.14314), by bitsandbytes through diffusers."""

from typing import Any

import torch
from accelerate.utils import is_bnb_available
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig
from torch import nn


def check_quantizable() -> None:
    """Raise a `ValueError` where bitsandbytes or a CUDA device is missing."""
    if not is_bnb_available() or not torch.cuda.is_available():
        installed = "is" if is_bnb_available() else "is not"
        found = "is a" if torch.cuda.is_available() else "is no"
        raise ValueError(
            f"`quantize_base` must go with CUDA and bitsandbytes; there {found} CUDA device, and bitsandbytes"
            f" {installed} installed."
        )


def four_bit_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a pipeline's `from_pretrained` that load the weights of its UNet's linear layers as NF4.

    Args:
        dtype (`torch.dtype`): Of the UNet's other weights, and what products are computed in.
    Returns:
        `dict[str, Any]`: `quantization_config`, and `dtype`, in which all other models stay in float32.
    Raises:
        ValueError: As [`check_quantizable`].
    """
    check_quantizable()
    unet = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {
        "quantization_config": PipelineQuantizationConfig(quant_mapping={"unet": unet}),
        "dtype": {"unet": dtype, "default": torch.float32},
    }


def is_quantized(model: nn.Module) -> bool:
    """Whether it was loaded so; its weights are then left in the form that they have."""
    return getattr(model, "is_quantized", False)
