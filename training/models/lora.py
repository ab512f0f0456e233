# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A subject as a LoRA of UNet, adapter and VAE decoder (arXiv:2106.09685): attached by PEFT for training, and taken
out as `DreamPosePipeline.save_lora_weights` writes it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from pipeline_dreampose import DreamPosePipeline


ADAPTER_NAME = "subject"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv")  # of residual blocks and between levels


def build_lora_configs(
    rank: int,
    lora_alpha: int | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    lora_convolutions: bool = False,
    lora_conv_in: bool = False,
) -> dict[str, LoraConfig]:
    """The LoRA of each part: of the UNet's attention, both layers of the adapter, and the VAE decoder's convolutions
    and attention.

    Args:
        rank (`int`): Of every layer.
        lora_alpha (`int`, *optional*): The LoRA counts `lora_alpha / rank`; the rank if `None`.
        use_rslora (`bool`, *optional*, defaults to `False`): It counts `lora_alpha / sqrt(rank)` (arXiv:2312.03732).
        use_dora (`bool`, *optional*, defaults to `False`): Train the norms of the weights apart (arXiv:2402.09353).
        lora_convolutions (`bool`, *optional*, defaults to `False`): Of the UNet's residual blocks and resamplers too.
        lora_conv_in (`bool`, *optional*, defaults to `False`): Of the UNet's first layer, which sees the poses, too.
    Returns:
        `dict[str, LoraConfig]`: By component: `unet`, `adapter`, `vae`.
    """
    unet = [*ATTENTION, *(CONVOLUTIONS if lora_convolutions else ()), *(("conv_in",) if lora_conv_in else ())]
    decoder = "|".join(name.replace(".", r"\.") for name in (*ATTENTION, *CONVOLUTIONS, "conv_in", "conv_out"))
    targets = {
        "unet": unet,
        "adapter": ["vae_projection", "token_mixer"],
        "vae": rf"decoder\.(.*\.)?({decoder})",
    }
    settings = {"r": rank, "lora_alpha": lora_alpha or rank, "use_rslora": use_rslora, "use_dora": use_dora}
    return {name: LoraConfig(target_modules=modules, **settings) for name, modules in targets.items()}


@contextmanager
def attached_lora(parts: Mapping[str, nn.Module], configs: Mapping[str, LoraConfig], seed: int) -> Iterator[None]:
    """Attach a new LoRA to each part, the only weights of it that train, in float32; without them again afterwards.

    Args:
        parts (`Mapping[str, nn.Module]`): Component name -> model.
        configs (`Mapping[str, LoraConfig]`): From [`build_lora_configs`].
        seed (`int`): Of the new weights. The LoRA's product with the input begins at 0 whatever they are.
    """
    # What a second phase begins with must not depend on how often the first one was interrupted.
    torch.manual_seed(seed)
    try:
        for name, part in parts.items():
            part.add_adapter(configs[name], ADAPTER_NAME)
            cast_training_params(part, torch.float32)
        yield
    finally:
        for part in parts.values():
            part.unload_lora()


def collect_lora(parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The layers and configurations of attached LoRAs, as arguments of `DreamPosePipeline.save_lora_weights`.

    Args:
        parts (`Mapping[str, nn.Module]`): Component name -> model.
    """
    arguments = {}
    for name, part in parts.items():
        layers = get_peft_model_state_dict(part, adapter_name=ADAPTER_NAME)
        arguments[f"{name}_lora_layers"] = {
            key: layer.to("cpu", copy=True).contiguous() for key, layer in layers.items()
        }
        arguments[f"{name}_lora_adapter_metadata"] = config_metadata(part.peft_config[ADAPTER_NAME])
    return arguments


def write_subject_file(output_dir: Path, layers: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write a subject's one file, equal for equal subjects.

    Args:
        output_dir (`Path`): Where it goes.
        layers (`Mapping[str, Any]`): Arguments of `DreamPosePipeline.save_lora_weights`, from [`collect_lora`].
        facts (`Mapping[str, Any]`): For its metadata; those that are `None` are left out.
    Returns:
        `Path`: The file.
    """
    facts = {name: value for name, value in facts.items() if value is not None}
    DreamPosePipeline.save_lora_weights(output_dir, **layers, run_metadata=facts)
    path = Path(output_dir) / LORA_WEIGHT_NAME_SAFE
    sort_metadata(path)
    return path


def sort_metadata(path: Path) -> None:
    """Bring the metadata of a safetensors file into the order of their names. The library writes them in another order
    each time, so that equal subjects would be unequal files, of which a push sends each.

    Args:
        path (`Path`): The file; its tensors stay as they are.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    size = -(-len(text) // 8) * 8  # the format pads it with spaces, for tensors that lie at multiples of 8
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(size.to_bytes(8, "little") + text.ljust(size) + content[start:])
    os.replace(partial, path)


def config_metadata(config: LoraConfig) -> dict[str, Any]:
    """A LoRA's configuration as a file's metadata, the same in every process.

    Args:
        config (`LoraConfig`): Of one part.
    """
    # A set has another order in each process.
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
