"""A base in 4 bit: what is asked of diffusers; it runs on no CPU."""

import importlib.metadata

import torch
from torch import nn

from training.models.base_pipeline import four_bit_arguments, is_quantized
from training.models.denoiser import Denoiser


def test_the_unet_alone_is_loaded_as_nf4(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.48.0")  # the configuration asks for it
    arguments = four_bit_arguments(torch.bfloat16)
    assert arguments["dtype"] == {"unet": torch.bfloat16, "default": torch.float32}
    (part, config), *others = arguments["quantization_config"].quant_mapping.items()
    assert part == "unet" and not others
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == (
        True, "nf4", torch.bfloat16
    )  # fmt: skip


def test_weights_that_are_whole_numbers_are_left_as_they_are():
    """As bitsandbytes keeps 4-bit weights: torch refuses to ask gradients of them."""
    unet, adapter = nn.Linear(2, 2), nn.Linear(2, 2)
    unet.weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    module = Denoiser(unet, adapter)
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    assert trained == {"unet.bias", "adapter.weight", "adapter.bias"}
    assert not is_quantized(unet)
    unet.is_quantized = True  # as diffusers marks such a model
    assert is_quantized(unet)
