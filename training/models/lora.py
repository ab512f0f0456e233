# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""LoRA (arXiv:2106.09685) on UNet, adapter and VAE decoder: target layers, attaching, collecting and saving."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from pipeline_dreampose import DreamPosePipeline
from training.engine.precision import held_in
from training.models.base_pipeline import is_quantized


ADAPTER_NAME = "subject"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv")  # of residual blocks and resamplers
# The layers of LCM-LoRA (arXiv:2311.05556): nearly all of the UNet's.
FEW_STEP_LAYERS = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", *CONVOLUTIONS, "time_emb_proj")


def build_lora_configs(
    rank: int,
    lora_alpha: int | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    lora_convolutions: bool = False,
    lora_conv_in: bool = False,
) -> dict[str, LoraConfig]:
    """Return the LoRA configurations of `unet`, `adapter` and `vae`, which name the target layers.

    The targets are the UNet's attention, both layers of the adapter, and the VAE decoder's convolutions and attention.

    Args:
        rank (`int`): Rank of every layer.
        lora_alpha (`int`, *optional*, defaults to `rank`): The LoRA is scaled by `lora_alpha / rank`.
        use_rslora (`bool`, *optional*, defaults to `False`): Scale by `lora_alpha / sqrt(rank)` (arXiv:2312.03732).
        use_dora (`bool`, *optional*, defaults to `False`): Train the weights' norms separately (arXiv:2402.09353).
        lora_convolutions (`bool`, *optional*, defaults to `False`): Add the UNet's residual blocks and resamplers.
        lora_conv_in (`bool`, *optional*, defaults to `False`): Add the UNet's first layer, which reads the poses.
    """
    unet = [*ATTENTION, *(CONVOLUTIONS if lora_convolutions else ()), *(["conv_in"] if lora_conv_in else ())]
    decoder = "|".join(name.replace(".", r"\.") for name in (*ATTENTION, *CONVOLUTIONS, "conv_in", "conv_out"))
    targets = {"unet": unet, "adapter": ["vae_projection", "token_mixer"], "vae": rf"decoder\.(.*\.)?({decoder})"}
    settings = {"r": rank, "lora_alpha": lora_alpha or rank, "use_rslora": use_rslora, "use_dora": use_dora}
    return {name: LoraConfig(target_modules=modules, **settings) for name, modules in targets.items()}


@contextmanager
def attached_lora(parts: Mapping[str, nn.Module], configs: Mapping[str, LoraConfig], seed: int) -> Iterator[None]:
    """Attach a new LoRA in float32 to each model, train nothing else, and detach the LoRAs at the end.

    Args:
        parts (`Mapping[str, nn.Module]`): Component name -> model.
        configs (`Mapping[str, LoraConfig]`): From [`build_lora_configs`].
        seed (`int`): Seed of the new weights. A new LoRA changes no output, whatever its weights.
    """
    # The second phase must start with the same weights whether the first one was interrupted or not.
    torch.manual_seed(seed)
    try:
        for name, part in parts.items():
            part.add_adapter(configs[name], ADAPTER_NAME)
            cast_training_params(part, torch.float32)
        yield
    finally:
        for part in parts.values():
            part.unload_lora()


@contextmanager
def made_trainable(
    pipeline: DreamPosePipeline,
    trained: Mapping[str, nn.Module],
    configs: Mapping[str, LoraConfig] | None,
    dtype: torch.dtype,
    seed: int,
) -> Iterator[None]:
    """Prepare a pipeline for a training: trained weights in float32, frozen ones in `dtype`; undo it at the end.

    Args:
        pipeline (`DreamPosePipeline`): Its models are frozen, except what trains.
        trained (`Mapping[str, nn.Module]`): Component name -> the module in it whose weights train in full training.
            They keep their new values.
        configs (`Mapping[str, LoraConfig]`, *optional*): LoRA of each component; `None` trains all weights.
        dtype (`torch.dtype`): Data type of frozen weights.
        seed (`int`): Seed of a new LoRA.
    """
    models = [pipeline.unet, pipeline.adapter, pipeline.image_encoder, pipeline.vae]
    for model in models:
        model.requires_grad_(False)
    for module in trained.values():
        module.requires_grad_(configs is None)
    frozen = [module for model in models if not is_quantized(model) for module in _frozen_modules(model)]
    parts = {name: getattr(pipeline, name) for name in trained}
    with held_in(dtype, frozen), nullcontext() if configs is None else attached_lora(parts, configs, seed):
        yield


def _frozen_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest submodules whose weights are all frozen."""
    trains = {parameter.requires_grad for parameter in module.parameters()}
    if trains == {False}:
        yield module
    elif False in trains:
        for child in module.children():
            yield from _frozen_modules(child)


def collect_lora(parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return the attached LoRAs of `parts` (component name -> model) as arguments of `save_lora_weights`."""
    arguments = {}
    for name, part in parts.items():
        layers = get_peft_model_state_dict(part, adapter_name=ADAPTER_NAME)
        arguments[f"{name}_lora_layers"] = {
            key: layer.to("cpu", copy=True).contiguous() for key, layer in layers.items()
        }
        arguments[f"{name}_lora_adapter_metadata"] = config_metadata(part.peft_config[ADAPTER_NAME])
    return arguments


def write_subject_file(output_dir: Path, layers: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write a subject's LoRA file and return its path. Equal subjects give equal files.

    `layers` are from [`collect_lora`]; `facts` become metadata, except `None` values.
    """
    facts = {name: value for name, value in facts.items() if value is not None}
    DreamPosePipeline.save_lora_weights(output_dir, **layers, run_metadata=facts)
    path = Path(output_dir) / LORA_WEIGHT_NAME_SAFE
    sort_metadata(path)
    return path


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file by name.

    The library writes them in a random order, so equal subjects would differ as files and be uploaded again.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    size = -(-len(text) // 8) * 8  # padded with spaces, to align the tensors at multiples of 8
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(size.to_bytes(8, "little") + text.ljust(size) + content[start:])
    os.replace(partial, path)


def config_metadata(config: LoraConfig) -> dict[str, Any]:
    """Return a LoRA's configuration as metadata; sets, whose order changes with the process, become sorted lists."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
