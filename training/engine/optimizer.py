# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The optimizer of all trainers, and its state as named tensors."""

from collections.abc import Iterable, Mapping

import torch

from training.engine.devices import check_bitsandbytes
from training.engine.muon import MIN_MATRIX_SIZE, Muon, is_matrix


OPTIMIZERS = ("adamw", "muon")


def check_optimizer(name: str, use_8bit_adam: bool) -> None:
    """Raise a `ValueError` if the optimizer is unknown, or is not AdamW with `use_8bit_adam`."""
    if name not in OPTIMIZERS:
        raise ValueError(f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, got {name!r}.")
    if use_8bit_adam and name != "adamw":
        raise ValueError(f"`optimizer` must be adamw with `use_8bit_adam`, got {name}.")


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-2,
    epsilon: float = 1e-8,
    use_8bit_adam: bool = False,
    optimizer_name: str = "adamw",
) -> torch.optim.Optimizer:
    """Build AdamW or Muon over one group of parameters. The optimizer's state consists of tensors and counts.

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): Parameters to train.
        learning_rate (`float`): Learning rate of the first step.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.999)`): Decay of both moments.
        weight_decay (`float`, *optional*, defaults to 1e-2): Decoupled weight decay.
        epsilon (`float`, *optional*, defaults to 1e-8): Added to the square root of the second moment.
        use_8bit_adam (`bool`, *optional*, defaults to `False`):
            Keep AdamW's moments in 8 bit (bitsandbytes, arXiv:2110.02861): 2 bytes per weight instead of 8.
        optimizer_name (`str`, *optional*, defaults to `"adamw"`): `"adamw"` or `"muon"` ([`training.engine.muon`]).
    Raises:
        ValueError: If the name is unknown, no weight is wide enough for Muon, or `use_8bit_adam` is given without
            bitsandbytes, without CUDA or with Muon.
    """
    parameters = list(parameters)
    settings = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay, "eps": epsilon}
    check_optimizer(optimizer_name, use_8bit_adam)
    if use_8bit_adam:
        for device in sorted({parameter.device.type for parameter in parameters}):
            check_bitsandbytes("use_8bit_adam", device)
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    if optimizer_name == "muon":
        if not any(map(is_matrix, parameters)):
            raise ValueError(
                f"`optimizer` must be adamw where no trained weight has {MIN_MATRIX_SIZE} rows and columns (a LoRA has"
                " `rank` of them), got muon."
            )
        return Muon(parameters, **settings)
    # torch's default on CUDA is `foreach`, whose temporary tensors need as much memory as the weights.
    # On the CPU, `fused` silently computes wrong updates if a parameter is channels_last and its gradient is not (as
    # after a flattened all-reduce). On CUDA it refuses such a pair, and autograd itself never makes one.
    is_fused = all(parameter.device.type == "cuda" for parameter in parameters)
    return torch.optim.AdamW(parameters, fused=is_fused or None, **settings)


def flatten_optimizer_state(
    optimizer: torch.optim.Optimizer, named_parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the state as one flat mapping, `"exp_avg/conv_in.weight"` -> tensor. Counts become int64 tensors.

    Raises:
        TypeError: If the state of a parameter holds anything but tensors and counts.
    """
    flat = {}
    for name, parameter in named_parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if type(value) is int:
                value = torch.tensor(value)
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"`optimizer` must keep tensors only, got {type(value).__name__} for `{key}`.")
            flat[f"{key}/{name}"] = value
    return flat


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer,
    named_parameters: Mapping[str, torch.nn.Parameter],
    flat: Mapping[str, torch.Tensor],
) -> None:
    """Restore a state from [`flatten_optimizer_state`], each tensor in the memory layout of its parameter.

    All tensors are copied: those of `flat` may be mapped from a file, whose disk space is not freed while one lives.

    Raises:
        ValueError: If `flat` names a parameter that is not in `named_parameters`.
    """
    optimizer.state.clear()
    counts_on_device = optimizer.param_groups[0].get("fused", False)
    for full_name, value in flat.items():
        key, _, name = full_name.partition("/")
        if name not in named_parameters:
            raise ValueError(f"The checkpoint's optimizer state must fit the model, got frozen or unknown `{name}`.")
        parameter = named_parameters[name]
        if key == "step":  # torch's AdamW keeps this count as a tensor, on the CPU unless it is fused
            place = parameter.device if counts_on_device else "cpu"
            value = value.to(place, copy=True) if value.is_floating_point() else int(value)
        elif value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        else:
            value = value.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = value
