# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Bytes of a training step, counted on the meta device: every tensor has a size there and none has memory.

Counted are the tensors that torch makes, from when one is made until nothing refers to it, as on a GPU. What kernels
need within themselves, the allocator's gaps and the CUDA context are not. Two things differ between meta and CUDA and
are put right: attention keeps its inputs, output and one number a row, as the memory-efficient kernel does, and
autocast follows CUDA's lists.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint


# What of CUDA's lists these models call; all else runs in the dtype that its inputs have, or the widest of them.
LOWER_PRECISION = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm, torch.Tensor.matmul}
FLOAT32 = {F.group_norm, F.layer_norm, F.softmax, F.mse_loss, F.l1_loss, torch.exp, torch.Tensor.exp, torch.Tensor.pow}
NF4_BITS = 4 + 32 / 64  # a scale in float32 for each 64 weights


class _MemoryEfficientAttention(torch.autograd.Function):
    """Sizes alone: on meta nothing is computed."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        logsumexp = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class LikeOnCuda(TorchFunctionMode):
    """Attention as the memory-efficient kernel, and autocast to `dtype`, on meta, for forward and backward.

    Args:
        dtype (`torch.dtype`, *optional*): Of autocast; none without it.
    """

    def __init__(self, dtype: torch.dtype | None = None):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_attention = function is F.scaled_dot_product_attention
        if self.dtype is not None and (is_attention or function in LOWER_PRECISION):
            args, kwargs = _cast((args, kwargs), self.dtype)
        elif self.dtype is not None and function in FLOAT32:
            args, kwargs = _cast((args, kwargs), torch.float32)
        if is_attention:
            return _MemoryEfficientAttention.apply(*args[:3])
        return function(*args, **kwargs)


def _cast(values, dtype: torch.dtype):
    def cast(value):
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tree_map(cast, values)


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that were made while this is active: those alive `now`, and the most at a time, `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {_key(tensor) for tensor in _tensors((args, kwargs))}
        output = function(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            if _key(tensor) not in given | self._known.keys():
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        self._known[key] = num_bytes
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


@contextmanager
def saved_for_backward(exclude: Iterable[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Note what autograd saves meanwhile: key of a storage -> its bytes, each storage once.

    Of what a checkpoint computes anew, its inputs alone are seen.

    Args:
        exclude (`Iterable[torch.Tensor]`): What is counted elsewhere, such as parameters.
    """
    excluded, saved, alive = {_key(tensor) for tensor in exclude}, {}, []

    def pack(tensor):
        if _key(tensor) not in excluded:
            saved[_key(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor.untyped_storage())  # or another might come to have its key
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def count_step(
    forward: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], dtype: torch.dtype | None = None
) -> dict[str, int]:
    """What a forward and a backward pass want besides the parameters.

    Args:
        forward (`Callable`): Returns the loss, a scalar on meta.
        parameters (`Sequence[torch.Tensor]`): Of all models in it.
        dtype (`torch.dtype`, *optional*): Of autocast.
    Returns:
        `dict[str, int]`: `saved_activations`, the bytes that the forward pass leaves for the backward pass, and
        `peak`, the most at a time in both, gradients and what operations need in between included.
    """
    with LiveBytes() as live, LikeOnCuda(dtype):
        with saved_for_backward(parameters) as saved:
            loss = forward()
        num_saved = sum(saved.values())
        saved.clear()
        torch.autograd.backward(loss)
    return {"saved_activations": num_saved, "peak": live.peak}


def checkpoint_like_on_cuda(dtype: torch.dtype | None) -> Callable[..., Any]:
    """What diffusers' `enable_gradient_checkpointing` takes: its own, for [`LikeOnCuda`] also when computed anew."""

    def run(module, *args):
        contexts = lambda: (nullcontext(), LikeOnCuda(dtype))  # noqa: E731
        return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=contexts)

    return run


def bytes_by_dtype(tensors: Iterable[torch.Tensor]) -> dict[str, int]:
    """Bytes of tensors, by the names of their dtypes."""
    totals = {}
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        totals[name] = totals.get(name, 0) + tensor.nbytes
    return totals


def quantized_bytes(module: nn.Module) -> dict[str, int]:
    """The same for a module whose frozen linear layers' weights bitsandbytes keeps in NF4."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    weights = {id(layer.weight): layer.weight for layer in layers if not layer.weight.requires_grad}
    others = [parameter for parameter in module.parameters() if id(parameter) not in weights]
    return bytes_by_dtype(others) | {"nf4": sum(int(w.numel() * NF4_BITS / 8) for w in weights.values())}


def optimizer_bytes(parameters: Iterable[torch.Tensor], use_8bit_adam: bool) -> int:
    """Of AdamW's two moments: float32, or 8 bit with a scale for each 256 where a tensor has at least 4096 numbers."""
    counts = [parameter.numel() for parameter in parameters]
    return sum(
        2 * (count + 4 * math.ceil(count / 256)) if use_8bit_adam and count >= 4096 else 8 * count for count in counts
    )


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
