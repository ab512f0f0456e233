# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""LoRAs that a pipeline is loaded with: subjects, and at most one few-step LoRA, which may be the model's own."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.utils import _get_model_file
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open

from pipeline_dreampose import DreamPosePipeline
from training.engine.hub_access import check_reachable
from training.engine.messages import naming_arguments, one_line, shorten


logger = logging.getLogger(__name__)

OWN_FAST = f"fast/{LORA_WEIGHT_NAME_SAFE}"  # in a model's folder or repository: its few-step LoRA
_RULE = "be the file, folder or Hub id of a LoRA"


def choose_loras(
    loras: Sequence[str],
    model: str,
    revision: str | None = None,
    fast: bool | None = None,
    own_by_default: bool = True,
) -> tuple[list[str], str | None]:
    """Return the LoRAs to load a model with, and which of them is the few-step LoRA, `None` if none is.

    Args:
        loras (`Sequence[str]`): Files, folders or Hub ids of subjects, and of at most one few-step LoRA.
        model (`str`): Folder or Hub id of the pipeline.
        revision (`str`, *optional*): Branch, tag or commit of `model` on the Hub.
        fast (`bool`, *optional*): Whether a few-step LoRA, of `loras` or the model's own, is needed or refused.
        own_by_default (`bool`, *optional*, defaults to `True`):
            Whether the model's own few-step LoRA is used if there is one, `loras` name none, and `fast` is `None`.
    Raises:
        ValueError: If a LoRA cannot be read, several are few-step LoRAs, one is refused, the needed one is not there,
            or the model's own is none.
    """
    given = [lora for lora in loras if has_few_steps(lora)]
    if len(given) > 1:
        raise ValueError(f"`lora` must name at most one few-step LoRA, got {' and '.join(map(shorten, given))}.")
    if given and fast is False:
        raise ValueError(f"`no_fast` must be given without a few-step LoRA as `lora`, got {shorten(given[0])}.")
    if given or not (own_by_default if fast is None else fast):
        return [*loras], next(iter(given), None)
    own, reason = _find_own_fast(model, revision)
    if own is None and fast:
        raise ValueError(
            f"`fast` must be given with a model that has a few-step LoRA ({OWN_FAST}), or with one as `lora`, got"
            f" {shorten(model)}, {reason}."
        )
    if own is not None and not has_few_steps(own, is_own=True):
        raise ValueError(_own_rule(own, "there is no `dreampose.few_steps` in its metadata."))
    return [*loras, *([] if own is None else [own])], own


def has_few_steps(lora: str, is_own: bool = False) -> bool:
    """Return whether the header of a LoRA's file has settings of few steps, without reading the weights.

    Raises:
        ValueError: If it cannot be read. The message names `lora`, or the model if the LoRA is its own.
    """
    with _explain_lora(lora, is_own):
        try:
            with safe_open(_get_model_file(lora, weights_name=LORA_WEIGHT_NAME_SAFE), "pt") as file:
                text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
            metadata = json.loads(text) if text else {}
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"`lora` must be safetensors, and its metadata JSON, got {lora!r}: {error}.") from error
    return isinstance(metadata, dict) and "dreampose.few_steps" in metadata


def _find_own_fast(model: str, revision: str | None) -> tuple[str | None, str]:
    """Return the file of a model's few-step LoRA, or `None` and why there is none.

    If the Hub does not give it and nobody knows whether it exists, a model in the cache causes a warning. Loading any
    other one fails and says why.
    """
    check_reachable("model", model, "be a pipeline's folder or a Hub id")
    none = None, "which has none"
    if Path(model).exists():
        path = Path(model, OWN_FAST)
        return (str(path), "") if path.is_file() else none
    try:
        return hf_hub_download(model, OWN_FAST, revision=revision), ""
    except RemoteEntryNotFoundError:
        return none
    except OSError as error:
        if try_to_load_from_cache(model, OWN_FAST, revision=revision) is _CACHED_NO_EXIST:
            return none
        reason = f"of which it cannot be loaded: {one_line(error, 300).rstrip('.')}"
    if isinstance(try_to_load_from_cache(model, "model_index.json", revision=revision), str):
        logger.warning(f"All steps are sampled, without a few-step LoRA of {shorten(model)}, {reason}.")
    return None, reason


def check_lora(lora: str) -> None:
    """Raise a `ValueError` if there is no LoRA of this name, without reading it."""
    check_reachable("lora", lora, _RULE)


def _own_rule(path: str, got: object) -> str:
    """Return the message about a model's own few-step LoRA that cannot be used."""
    return f"`model` must have a few-step LoRA as {OWN_FAST}, unless `--no_fast` is given, got {path!r}: {got}"


@contextmanager
def _explain_lora(lora: str, is_own: bool = False) -> Iterator[None]:
    """Name `lora`, or the model's own file, in the errors of reading a LoRA, all of which become a `ValueError`."""
    check_lora(lora)
    name = OWN_FAST if is_own else "lora"
    try:
        with naming_arguments(pretrained_model_name_or_path_or_dict=name, lora=name):
            yield
    except (OSError, ValueError) as error:
        if is_own:
            raise ValueError(_own_rule(lora, error)) from error
        if isinstance(error, OSError):
            raise ValueError(f"`lora` must {_RULE}, got {lora!r}: {error}") from error
        raise


def fuse_loras(pipeline: DreamPosePipeline, loras: Sequence[str], own: str | None = None) -> None:
    """Fuse LoRAs into a pipeline's weights, which is no slower than without them. One may be a few-step LoRA.

    Errors say that `own` among them is the model's own few-step LoRA.
    """
    names = {f"given_{index}": lora for index, lora in enumerate(loras)}
    for name, lora in names.items():
        with _explain_lora(lora, lora == own):
            pipeline.load_lora_weights(lora, adapter_name=name)
        if has_few_steps(lora):
            pipeline.use_few_steps(name)
    if names:
        pipeline.set_adapters(list(names))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
