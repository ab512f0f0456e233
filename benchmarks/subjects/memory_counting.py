# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Memory of the phases of stage 2: counted on the meta device, where a tensor has a size but no memory, or measured.

Each tensor counts from its creation until nothing refers to it, as on a GPU. Memory within kernels, the allocator's
gaps and the CUDA context do not count. Two differences between meta and CUDA are corrected: attention saves its
inputs, its output and one number per row, as the memory-efficient kernel does, and autocast follows CUDA's lists.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from benchmarks.speed.sampling_procedures import SIZES, build_models, build_pipeline
from training.data.frame_pairs import LatentShape
from training.data.latent_cache import pictures_at_a_time
from training.data.pair_settings import PairSettings
from training.data.procedural_fashion import ProceduralFashionConfig
from training.models.autoencoder import VAETrainer
from training.models.base_pipeline import four_bit_arguments, load_subject_base
from training.models.denoiser import Denoiser
from training.models.lora import attached_lora, build_lora_configs
from training.subject.phases import PHASES, phase_arguments, train_subject
from training.subject.photos import SubjectPairs, load_photos


TRAINED = {"denoiser": ("unet", "adapter"), "decoder": ("vae",)}
# The models on the GPU in each phase. The encoders leave it once they have encoded the crops.
ON_DEVICE = {"encoding": ("unet", "adapter", "vae", "image_encoder"), **TRAINED}
# The functions of CUDA's autocast lists that these models call. All others run in the widest dtype of their inputs.
LOWER_PRECISION = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm, torch.Tensor.matmul}
FLOAT32 = {F.group_norm, F.layer_norm, F.softmax, F.mse_loss, F.l1_loss, torch.exp, torch.Tensor.exp, torch.Tensor.pow}
NF4_BITS = 4 + 32 / 64  # including one float32 scale per 64 weights


class _MemoryEfficientAttention(torch.autograd.Function):
    """Create tensors of the right sizes; the meta device computes nothing."""

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
    """Run attention like CUDA's memory-efficient kernel and autocast to `dtype` like CUDA, on meta, in both passes."""

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
    """Count the bytes of all storages made while this is active: those alive `now`, and their `peak`."""

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
    """Record the storages that autograd saves: key of a storage -> its bytes, each once, without those of `exclude`.

    Under checkpointing only its inputs count; the rest is recomputed.
    """
    excluded, saved, alive = {_key(tensor) for tensor in exclude}, {}, []

    def pack(tensor):
        if _key(tensor) not in excluded:
            saved[_key(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor.untyped_storage())  # keeps its key from being reused
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def count_step(
    forward: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], dtype: torch.dtype | None = None
) -> dict[str, int]:
    """Count the bytes that a forward and a backward pass need in addition to the parameters of all models in them.

    Returns `saved_activations`, the bytes that the forward pass saves for the backward pass, and `peak`, the peak of
    both passes including gradients and temporary results. `forward` returns the loss; `dtype` is that of autocast.
    """
    with LiveBytes() as live, LikeOnCuda(dtype):
        with saved_for_backward(parameters) as saved:
            loss = forward()
        num_saved = sum(saved.values())
        saved.clear()
        torch.autograd.backward(loss)
    return {"saved_activations": num_saved, "peak": live.peak}


def checkpoint_like_on_cuda(dtype: torch.dtype | None) -> Callable[..., Any]:
    """Return a checkpoint function for diffusers' `enable_gradient_checkpointing` that recomputes in `LikeOnCuda`."""

    def run(module, *args):
        contexts = lambda: (nullcontext(), LikeOnCuda(dtype))  # noqa: E731
        return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=contexts)

    return run


def bytes_by_dtype(tensors: Iterable[torch.Tensor]) -> dict[str, int]:
    """Count the bytes of tensors by dtype name."""
    totals = {}
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        totals[name] = totals.get(name, 0) + tensor.nbytes
    return totals


def quantized_bytes(module: nn.Module) -> dict[str, int]:
    """Count the bytes of a module by dtype, with the weights of its frozen linear layers in NF4 as in bitsandbytes."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    weights = {id(layer.weight): layer.weight for layer in layers if not layer.weight.requires_grad}
    others = [parameter for parameter in module.parameters() if id(parameter) not in weights]
    return bytes_by_dtype(others) | {"nf4": sum(int(w.numel() * NF4_BITS / 8) for w in weights.values())}


def optimizer_bytes(parameters: Iterable[torch.Tensor], use_8bit_adam: bool) -> int:
    """Bytes of AdamW's moments: float32, or 8 bit with a scale per 256 numbers for tensors of 4096 or more."""
    counts = [parameter.numel() for parameter in parameters]
    return sum(
        2 * (count + 4 * math.ceil(count / 256)) if use_8bit_adam and count >= 4096 else 8 * count for count in counts
    )


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


@dataclass(frozen=True)
class Setting:
    """Options of a run that determine its memory, under the names of the options."""

    train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    mixed_precision: str
    use_8bit_adam: bool
    quantize_base: bool
    rank: int

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return {"no": None, "bf16": torch.bfloat16}[self.mixed_precision]


def count_setting(size: str, setting: Setting) -> dict[str, dict[str, Any]]:
    """Count the bytes on the GPU in each phase, on the meta device. `size` is a key of `SIZES`.

    A phase has `parameters` by dtype, `gradients`, `optimizer`, `saved_activations`, `step_peak` (peak of activations,
    gradients and temporary results) and `total` (parameters, moments, gradients of earlier batches and this peak).
    """
    with torch.device("meta"):
        models = build_models(size)
    forwards = _build_forwards(size, models, setting.train_batch_size)
    for model in models.values():
        model.requires_grad_(False)
        nn.Module.to(model, setting.autocast_dtype or torch.float32)
    if setting.gradient_checkpointing:
        for name in ("unet", "vae"):
            models[name].enable_gradient_checkpointing(checkpoint_like_on_cuda(setting.autocast_dtype))
    figures = {}
    for phase, parts in TRAINED.items():
        trained_parts = {name: models[name] for name in parts}
        with attached_lora(trained_parts, build_lora_configs(setting.rank), seed=0):
            if phase == "denoiser":
                figures["encoding"] = _sum_up(models, "encoding", setting, _count_encoding(size, models))
            parameters = [value for part in trained_parts.values() for value in part.parameters()]
            step = count_step(forwards[phase], parameters, setting.autocast_dtype)
            figures[phase] = _sum_up(models, phase, setting, step)
    return figures


def _build_forwards(
    size: str, models: Mapping[str, nn.Module], batch_size: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return functions that run the forward pass of each phase on meta and return its loss."""
    *_, height, width = SIZES[size]
    denoiser, decoder = Denoiser(models["unet"], models["adapter"]), VAETrainer(models["vae"], kl_weight=0.0)
    with torch.device("meta"):
        latents = torch.empty(batch_size, 4, height // 8, width // 8)
        pose_window = torch.empty(batch_size, 10, height // 8, width // 8)
        timesteps = torch.empty(batch_size, dtype=torch.long)
        image_embeds = torch.empty(batch_size, 50, 768)
        pixel_values = torch.empty(batch_size, 3, height, width)

    def denoise():
        model_pred = denoiser(latents, timesteps, pose_window, latents, image_embeds=image_embeds)
        return F.mse_loss(model_pred.float(), latents)

    return {"denoiser": denoise, "decoder": lambda: decoder(pixel_values, latents)["loss"]}


def _count_encoding(size: str, models: Mapping[str, nn.Module]) -> dict[str, int]:
    *_, height, width = SIZES[size]
    vae, image_encoder = models["vae"], models["image_encoder"]
    batch_size, side = pictures_at_a_time(height, width), image_encoder.config.image_size
    pixel_values = torch.empty(batch_size, 3, height, width, dtype=vae.dtype, device="meta")
    squares = torch.empty(batch_size, 3, side, side, dtype=image_encoder.dtype, device="meta")
    with torch.no_grad(), LiveBytes() as live, LikeOnCuda():
        vae.encode(pixel_values)
        image_encoder(squares)
    return {"saved_activations": 0, "peak": live.peak}


def _sum_up(models: Mapping[str, nn.Module], phase: str, setting: Setting, step: dict[str, int]) -> dict[str, Any]:
    """Return the figures of a phase while its LoRA is attached."""
    names, parameters = ON_DEVICE[phase], {}
    for name in names:
        is_quantized = name == "unet" and setting.quantize_base
        own = quantized_bytes(models[name]) if is_quantized else bytes_by_dtype(models[name].parameters())
        parameters |= {dtype: parameters.get(dtype, 0) + num_bytes for dtype, num_bytes in own.items()}
    trained = [value for name in names for value in models[name].parameters() if value.requires_grad]
    gradients, optimizer = sum(p.nbytes for p in trained), optimizer_bytes(trained, setting.use_8bit_adam)
    if phase == "encoding":  # the optimizer does not exist yet
        gradients = optimizer = 0
    earlier = gradients if setting.gradient_accumulation_steps > 1 else 0
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": optimizer,
        "saved_activations": step["saved_activations"],
        "step_peak": step["peak"],
        "total": sum(parameters.values()) + optimizer + earlier + step["peak"],
    }


def measure_setting(size: str, setting: Setting, device: str, num_steps: int, folder: Path) -> dict[str, int | None]:
    """Measure the peak of each phase with `torch.cuda.max_memory_allocated` in a real run of `num_steps` per phase.

    On the CPU the same code runs and the peaks are `None`. The folder is for photos, checkpoints and a base in 4 bit.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # the last setting may have another precision
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=setting.mixed_precision)
    pipe = build_pipeline(size, "cpu", torch.float32)
    if setting.quantize_base:
        pipe.save_pretrained(folder / "base")
        loading = four_bit_arguments(setting.autocast_dtype or torch.float32)
        pipe = load_subject_base(str(folder / "base"), **loading)
    pipe.to(accelerator.device)
    if setting.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        pipe.vae.enable_gradient_checkpointing()
    height, width = pipe.config.default_height, pipe.config.default_width
    (folder / "photos").mkdir()
    num_photos = min(16, pictures_at_a_time(height, width))  # as many as one batch of the encoders takes
    drawn = ProceduralFashionConfig(height=height, width=width).clip("train", 0, 0, list(range(num_photos)))
    for number, frame in enumerate(drawn):
        Image.fromarray(frame.image).save(folder / "photos" / f"{number}.png")
        Image.fromarray(frame.iuv).save(folder / "photos" / f"{number}_iuv.png")
    shape = LatentShape.of(pipe.vae, height, width)
    samples = SubjectPairs(load_photos(folder / "photos"), shape, 0, PairSettings())
    common = {"max_train_steps": num_steps, "learning_rate": 0.0, "checkpointing_steps": None, "seed": 0}
    for name in ("train_batch_size", "gradient_accumulation_steps", "use_8bit_adam"):
        common[name] = getattr(setting, name)
    peaks = {}
    for phase in PHASES:
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        arguments = phase_arguments(folder, {phase: None}, common, {})
        train_subject(accelerator, pipe, samples, arguments, build_lora_configs(setting.rank), {}, num_cached_crops=1)
        peaks[phase] = torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else None
    return peaks
