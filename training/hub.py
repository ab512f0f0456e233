# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Saved pipelines, from a folder or the Hub."""

import json
from pathlib import Path

import torch

from pipeline_dreampose import DreamPosePipeline


def load_pipeline(
    model: str, device: str | torch.device = "cpu", dtype: str | None = None, lora: str | None = None
) -> DreamPosePipeline:
    """Load a DreamPose pipeline.

    Args:
        model (`str`): A pipeline's folder or a Hub id.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where its components go.
        dtype (`str`, *optional*): `"float32"`, `"float16"` or `"bfloat16"`; float16 on CUDA and float32 elsewhere if
            `None`.
        lora (`str`, *optional*): File, folder or Hub id of a subject, which is fused into the weights.
    Returns:
        `DreamPosePipeline`: With all components on `device`.
    Raises:
        ValueError: If `model` is a folder that holds no DreamPose pipeline, or neither a folder nor to be had as a Hub
            id; the same for `lora` and a subject of this model.
    """
    if Path(model).exists():
        found = _class_name(Path(model) / "model_index.json")
        if found != "DreamPosePipeline":
            raise ValueError(f"`model` must be the folder of a DreamPosePipeline, got {str(model)!r}, {found}.")
    dtype = getattr(torch, dtype or ("float16" if torch.device(device).type == "cuda" else "float32"))
    try:
        pipeline = DreamPosePipeline.from_pretrained(model, dtype=dtype).to(device)
    except OSError as error:
        raise ValueError(f"`model` must be a pipeline's folder or a Hub id, got {str(model)!r}: {error}") from error
    if lora is not None:
        try:
            pipeline.load_lora_weights(lora)
        except OSError as error:
            raise ValueError(f"`lora` must be a subject's file, folder or Hub id, got {lora!r}: {error}") from error
        pipeline.fuse_lora()  # no slower than without it
        pipeline.unload_lora_weights()
    return pipeline


def _class_name(index: Path) -> str:
    """The pipeline class that a `model_index.json` names, or what is wrong with the file."""
    if not index.is_file():
        return "which has no model_index.json"
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError):
        return "whose model_index.json names no pipeline class"
    return name[-1] if isinstance(name, list) else name
