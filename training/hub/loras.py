# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""LoRAs that a pipeline is loaded with: subjects, and at most one few-step LoRA, which may be the model's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from pipeline_dreampose import DreamPosePipeline
from training.engine.hub_access import check_reachable
from training.engine.messages import naming_arguments, shorten


OWN_FAST = f"fast/{LORA_WEIGHT_NAME_SAFE}"  # in a model's folder or repository: its few-step LoRA
_RULE = "be the file, folder or Hub id of a LoRA"


def choose_loras(
    loras: Sequence[str], model: str, revision: str | None = None, fast: bool | None = None
) -> tuple[list[str], str | None]:
    """Return the LoRAs to load a model with, and which of them is the few-step LoRA, `None` if none is.

    Args:
        loras (`Sequence[str]`): Files, folders or Hub ids of subjects, and of at most one few-step LoRA.
        model (`str`): Folder or Hub id of the pipeline.
        revision (`str`, *optional*): Branch, tag or commit of `model` on the Hub.
        fast (`bool`, *optional*):
            Whether the model's own few-step LoRA, without another among `loras`, is needed or left out. By default, it
            is used if there is one.
    Raises:
        ValueError: If a LoRA cannot be read, several are few-step LoRAs, or the needed one is not there.
    """
    given = [lora for lora in loras if _has_few_steps(lora)]
    if len(given) > 1:
        raise ValueError(f"`lora` must name at most one few-step LoRA, got {' and '.join(map(shorten, given))}.")
    own = None if given or fast is False else _find_own_fast(model, revision)
    if fast and not given and own is None:
        raise ValueError(
            f"`fast` must be given with a model that has a few-step LoRA ({OWN_FAST}), or with one as `lora`, got"
            f" {shorten(model)}, which has none."
        )
    return [*loras, *([] if own is None else [own])], next(iter(given), own)


def _has_few_steps(lora: str) -> bool:
    with _explain_lora(lora):
        return "dreampose.few_steps" in DreamPosePipeline.lora_state_dict(lora, return_lora_metadata=True)[1]


def _find_own_fast(model: str, revision: str | None) -> str | None:
    """Return the file of a model's few-step LoRA, or `None`, also if the Hub cannot be reached to look for it."""
    check_reachable("model", model, "be a pipeline's folder or a Hub id")
    if Path(model).exists():
        path = Path(model, OWN_FAST)
        return str(path) if path.is_file() else None
    try:
        return hf_hub_download(model, OWN_FAST, revision=revision)
    except EntryNotFoundError:
        return None


def check_lora(lora: str) -> None:
    """Raise a `ValueError` if there is no LoRA of this name, without reading it."""
    check_reachable("lora", lora, _RULE)


@contextmanager
def _explain_lora(lora: str) -> Iterator[None]:
    """Name `lora` in the errors of reading a LoRA, all of which become a `ValueError`."""
    check_lora(lora)
    try:
        with naming_arguments(pretrained_model_name_or_path_or_dict="lora"):
            yield
    except OSError as error:
        raise ValueError(f"`lora` must {_RULE}, got {lora!r}: {error}") from error


def fuse_loras(pipeline: DreamPosePipeline, loras: Sequence[str]) -> None:
    """Fuse LoRAs into a pipeline's weights, which is no slower than without them. One may be a few-step LoRA."""
    names = {f"given_{index}": lora for index, lora in enumerate(loras)}
    for name, lora in names.items():
        with _explain_lora(lora):
            pipeline.load_lora_weights(lora, adapter_name=name)
        if _has_few_steps(lora):
            pipeline.use_few_steps(name)
    if names:
        pipeline.set_adapters(list(names))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
