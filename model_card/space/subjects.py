# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A subject's LoRA that a visitor names by its Hub id."""

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from training.engine.messages import naming_arguments, shorten
from training.hub.loras import has_few_steps
from training.hub.repositories import is_repo_id


MAX_LORA_BYTES = 500_000_000
_RULE = "`subject` must be the Hub id of a public subject, such as you/dreampose-anna"


@contextmanager
def fetched_subject(subject: str) -> Iterator[str]:
    """Give the file of a subject's LoRA, which is kept no longer than the `with` block.

    Only the safetensors file is fetched, and without the owner's token, so that no visitor reads what is private. A
    folder of this machine is not read, whatever its name. Errors of reading the LoRA in the block name `subject`.

    Raises:
        ValueError: If it is no id, cannot be fetched, is too large, or is a few-step LoRA.
    """
    if not isinstance(subject, str) or subject.count("/") != 1 or not is_repo_id(subject):
        raise ValueError(f"{_RULE}, got {shorten(str(subject))}.")
    with TemporaryDirectory(prefix="dreampose-") as folder:
        what = {"repo_id": subject, "filename": LORA_WEIGHT_NAME_SAFE, "local_dir": folder, "token": False}
        try:
            size = hf_hub_download(**what, dry_run=True).file_size
            if size > MAX_LORA_BYTES:
                limit = f"at most {MAX_LORA_BYTES // 10**6} MB"
                raise ValueError(f"`subject` must have {limit}, got {subject} with {size // 10**6} MB.")
            path = hf_hub_download(**what)
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            reason = f"which has no {LORA_WEIGHT_NAME_SAFE} that everybody can read, or the Hub cannot be reached"
            raise ValueError(f"{_RULE}, got {subject}, {reason}.") from error
        try:
            with naming_arguments(lora="subject"):
                if has_few_steps(path):
                    raise ValueError("`subject` must be a subject, got a few-step LoRA.")
                yield path
        except ValueError as error:
            raise ValueError(str(error).replace(path, subject)) from error
