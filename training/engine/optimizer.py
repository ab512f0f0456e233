# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The optimizer of all trainers, and its state as tensors by name."""

from collections.abc import Iterable, Mapping

import torch

from training.engine.devices import check_bitsandbytes
from training.engine.muon import MIN_MATRIX_SIZE, Muon, is_matrix


OPTIMIZERS = ("adamw", "muon")


def check_optimizer(name: str, use_8bit_adam: bool) -> None:
    """Raise a `ValueError` unless there is such an optimizer, in 8 bit if that is asked for."""
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
    """AdamW or Muon over one group of parameters.

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): What is trained.
        learning_rate (`float`): Of the first step.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.999)`): Decay of both moments.
        weight_decay (`float`, *optional*, defaults to 1e-2): Decoupled from the gradient.
        epsilon (`float`, *optional*, defaults to 1e-8): Beside the square root of the second moment.
        use_8bit_adam (`bool`, *optional*, defaults to `False`):
            Keep the moments in 8 bit (bitsandbytes, arXiv:2110.02861): 2 bytes a weight instead of 8. AdamW only.
        optimizer_name (`str`, *optional*, defaults to `"adamw"`): Or `"muon"`, see [`training.engine.muon.Muon`].
    Returns:
        `torch.optim.Optimizer`: Its state consists of tensors and counts.
    Raises:
        ValueError: If `use_8bit_adam` is asked for without bitsandbytes, on another device than CUDA or with Muon, the
            name is another one, or Muon has no weight that is wide enough for it.
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
                " `lora_rank` of them), got muon."
            )
        return Muon(parameters, **settings)
    # Left to itself torch takes `foreach` on CUDA, which wants the weights' own size once more for what it computes.
    # On the CPU `fused` updates wrongly, without a word, where a parameter is channels_last and its gradient not (as
    # after a flattened all-reduce); on CUDA it refuses such a pair, which autograd itself makes none of.
    is_fused = all(parameter.device.type == "cuda" for parameter in parameters)
    return torch.optim.AdamW(parameters, fused=is_fused or None, **settings)


def flatten_optimizer_state(
    optimizer: torch.optim.Optimizer, named_parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """An optimizer's state as one flat mapping, `"exp_avg/conv_in.weight"` -> tensor; counts become int64 tensors.

    Raises:
        TypeError: If the optimizer keeps something else than tensors and counts for a parameter.
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
    """Put back what [`flatten_optimizer_state`] took, each tensor in the memory layout of its parameter.

    Nothing of `flat` is kept: its tensors may be a mapped file's, which could not be deleted for good while one lives.

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
        if key == "step":  # a count, which torch's AdamW keeps as a tensor, on the CPU unless it is fused
            place = parameter.device if counts_on_device else "cpu"
            value = value.to(place, copy=True) if value.is_floating_point() else int(value)
        elif value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        else:
            value = value.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = value
