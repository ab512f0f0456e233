# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A frozen base in 4 bit under a LoRA (arXiv:2305.14314), by bitsandbytes through diffusers."""

from typing import Any

import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig
from torch import nn


def four_bit_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a pipeline's `from_pretrained` that load the weights of its UNet's linear layers as NF4.

    Args:
        dtype (`torch.dtype`): Of the UNet's other weights, and what products are computed in.
    Returns:
        `dict[str, Any]`: `quantization_config`, and `dtype`, in which all other models stay in float32.
    """
    unet = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {
        "quantization_config": PipelineQuantizationConfig(quant_mapping={"unet": unet}),
        "dtype": {"unet": dtype, "default": torch.float32},
    }


def is_quantized(model: nn.Module) -> bool:
    """Whether it was loaded so; its weights are then left in the form that they have."""
    return getattr(model, "is_quantized", False)
